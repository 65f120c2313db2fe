"""The report of one flow run, gathered from its folder: the nodes' records, the configuration, the stages' events.

The runtime keeps one record a node in `nodes/<node>.json` (see tasks/runtime/store/records.py) and the events of a stage in its
artifact. This file reads them as JSON; it needs no part of the runtime, and no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from data_processing.errors import ConfigError
from data_processing.wording import path_of
from evaluation.evaluation_artifact import read_json
from evaluation.report.data import LineageEntry, ReportData, Timing, assemble
from evaluation.report.page import write_report

Record = Mapping[str, Any]
# Where a file of an artifact is, from its reference and its name; None where it is not to be had.
FindFile = Callable[[Record, str], Path | None]


def in_its_folder(ref: Record, name: str) -> Path:
    """The `FindFile` of artifacts that are in folders of this disk."""
    return path_of(ref["uri"]) / name


def build_report(run: Path, find: FindFile = in_its_folder) -> Path:
    """Write `report.html` into the run folder `run` and return its path; see `gather`."""
    path = run / "report.html"
    write_report(gather(run, find), path)
    return path


def gather(run: Path, find: FindFile = in_its_folder) -> ReportData:
    """What the report of the run in folder `run` shows. Raises `ConfigError` where the run has compared nothing yet."""
    records = _in_order([read_json(path) for path in sorted((run / "nodes").glob("*.json"))])
    done = [record for record in records if record["ref"] is not None]
    comparison = next((record for record in done if record["stage"] == "compare"), None)
    if comparison is None:
        raise ConfigError(
            f"run '{run.name}' has no report: its models have not been compared; finish it with `alignflow run` (nodes done: "
            f"{[record['node'] for record in done]})"
        )
    config = run / "config.yaml"
    data = find(comparison["ref"], "report_data.json")
    if data is None:
        raise ConfigError(f"run '{run.name}': its comparison is no longer in the store; run it again")
    return assemble(
        data.parent,
        {record["node"]: path for record in done if (path := find(record["ref"], "events.jsonl"))},
        config.read_text(encoding="utf-8") if config.is_file() else "",
        [_lineage(record, done) for record in done],
        [Timing(record["node"], record["seconds"] or 0.0, bool(record["cached"])) for record in done],
        title=run.name,
        pages=_pages(run / "status.json"),
        data={record["node"]: summary for record in done if (summary := _data_summary(record, find))},
        rewards={record["node"]: facts for record in done if (facts := _reward_facts(record, find))},
        conversations={
            record["node"]: told for record in done if (told := _json_of("online", record, find, "conversations.json"))
        },
        credit={record["node"]: told for record in done if (told := _json_of("online", record, find, "credit.json"))},
        segments={record["node"]: told for record in done if (told := _json_of("reward_model", record, find, "segments.json"))},
    )


def _data_summary(record: Record, find: FindFile) -> Mapping[str, Any] | None:
    """What a data artifact says of its tables; None for other artifacts, and for data that say nothing."""
    path = find(record["ref"], "summary.json") if record["ref"]["kind"] == "data" else None
    if path is None or not path.is_file():
        return None
    summary: Mapping[str, Any] = read_json(path)
    return summary if "rows" in summary else None


def _reward_facts(record: Record, find: FindFile) -> Mapping[str, Any] | None:
    """What an online run says of its rewards; None for others, and where there were none."""
    facts: Mapping[str, Any] | None = _json_of("online", record, find, "rewards.json")
    return facts if facts and facts["parts"] else None


def _json_of(stage: str, record: Record, find: FindFile, name: str) -> Any:
    """A JSON file of the artifact of a node of `stage`; None of others, and where it has none."""
    path = find(record["ref"], name) if record["stage"] == stage else None
    return read_json(path) if path is not None and path.is_file() else None


def _pages(status: Path) -> dict[str, str]:
    """Where the run is seen elsewhere, as far as there are servers for it."""
    links = read_json(status).get("links", {}) if status.is_file() else {}
    return {where: page for where, page in links.items() if page}


def _in_order(records: Sequence[Record]) -> list[Record]:
    """Each record after those it was made from; otherwise by name."""
    by_key = {record["key"]: record for record in records}
    sorter = TopologicalSorter({key: by_key.keys() & set(_input_keys(record)) - {key} for key, record in by_key.items()})
    sorter.prepare()
    depths: dict[str, int] = {}
    for depth, ready in enumerate(iter(sorter.get_ready, ())):
        depths |= dict.fromkeys(ready, depth)
        sorter.done(*ready)
    return sorted(records, key=lambda record: depths[record["key"]])


def _input_keys(record: Record) -> list[str]:
    return list(record["description"].get("inputs", {}).values())


def _lineage(record: Record, records: Sequence[Record]) -> LineageEntry:
    names = {other["key"]: other["node"] for other in records}
    inputs = [names.get(key, key[:12]) for key in dict.fromkeys(_input_keys(record))]
    ref = record["ref"]
    return LineageEntry(record["node"], ref["kind"], ref["key"], ref["producer"], inputs, record.get("adopted", []))
