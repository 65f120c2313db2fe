"""What a report shows, gathered from files. Pure reading: no torch, so that rebuilding a report is quick."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evaluation.evaluation_artifact import read_json
from evaluation.report.style import COLOURS
from evaluation.scores import Measure

# More points than this on one curve are averaged in groups: a picture has no more pixels to show them.
MAX_POINTS = 300


@dataclass(frozen=True)
class Curve:
    """One metric of one stage over its steps; `values` without gaps, non-finite ones left out and counted in `dropped`."""

    metric: str
    steps: Sequence[float]
    values: Sequence[float]
    dropped: int = 0


@dataclass(frozen=True)
class LineageEntry:
    """One artifact of the run: the node that needed it, what it is, who made it, and the nodes it was made from.

    `adopted` are the parts of its key that had changed when a person took it over.
    """

    node: str
    kind: str
    key: str
    producer: str
    inputs: Sequence[str] = ()
    adopted: Sequence[str] = ()


@dataclass(frozen=True)
class Timing:
    """Seconds a node took (of waiting and work together), and whether its result was taken from the store."""

    node: str
    seconds: float
    cached: bool


@dataclass(frozen=True)
class ReportData:
    """Everything on the page. `verdict`, `measures`, `samples`, `rows` and `sources` are those of `report_data.json`.

    `curves` are keyed by stage, `data` are the `summary.json` of data artifacts by node, `rewards`, `conversations` and
    `credit` the JSON files of these names of online runs, `segments` those of reward models, `pages` are addresses of the run elsewhere by what is found there. Whatever is empty is left out of
    the page.
    """

    title: str
    verdict: Mapping[str, Any]
    measures: Mapping[str, Measure]
    samples: Sequence[Mapping[str, Any]]
    confidence: float
    curves: Mapping[str, Sequence[Curve]] = field(default_factory=dict)
    warnings: Mapping[str, Sequence[str]] = field(default_factory=dict)
    config_yaml: str = ""
    lineage: Sequence[LineageEntry] = ()
    timings: Sequence[Timing] = ()
    rows: Mapping[str, Any] = field(default_factory=dict)
    sources: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    pages: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    rewards: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    conversations: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    credit: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    segments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def colour_of(self, name: str) -> str:
        """The CSS colour of a model, or of a node: that of the model it leads to or is a variant of."""
        models, called = list(self.verdict["models"]), entry_of(name)
        places = [i for i, model in enumerate(models) if model == name] or [
            i for i, m in enumerate(models) if entry_of(m) == called
        ]
        if not places:
            return "var(--accent)"
        place = places[0]
        return COLOURS[place] if place < len(COLOURS) else COLOURS[1 + (place - 1) % (len(COLOURS) - 1)]


def followed(node: str) -> str:
    """The node that a conversion or an evaluation follows; any other is its own."""
    return node.removeprefix("convert_").removeprefix("evaluate_")


def entry_of(node: str) -> str:
    """The entry of the pipeline that a node or a model belongs to: without variant, and without what follows it by itself."""
    return followed(node).partition("@")[0]


def assemble(
    comparison: Path,
    events: Mapping[str, Path],
    config_yaml: str,
    lineage: Sequence[LineageEntry],
    timings: Sequence[Timing],
    *,
    title: str = "Alignment report",
    pages: Mapping[str, str] | None = None,
    data: Mapping[str, Mapping[str, Any]] | None = None,
    rewards: Mapping[str, Mapping[str, Any]] | None = None,
    conversations: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    credit: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    segments: Mapping[str, Mapping[str, Any]] | None = None,
) -> ReportData:
    """Gather a report from a comparison artifact and from the `events.jsonl` of each stage (keyed by node name).

    Missing event files give no curves; raises `DataError` where the comparison artifact cannot be read.
    """
    shown = read_json(comparison / "report_data.json")
    read = {stage: list(_events(path)) for stage, path in events.items()}
    curves = {stage: _curves(lines) for stage, lines in read.items()}
    warnings = {
        stage: [str(line.get("message")) for line in lines if line.get("type") == "warning"] for stage, lines in read.items()
    }
    return ReportData(
        title=title,
        verdict=shown["verdict"],
        measures={name: Measure(**fields) for name, fields in shown["measures"].items()},
        samples=shown["samples"],
        confidence=shown["confidence"],
        curves={stage: found for stage, found in curves.items() if found},
        warnings={stage: found for stage, found in warnings.items() if found},
        config_yaml=config_yaml,
        lineage=lineage,
        timings=timings,
        rows=shown.get("rows", {}),
        sources=shown.get("sources", {}),
        pages=pages or {},
        data=data or {},
        rewards=rewards or {},
        conversations=conversations or {},
        credit=credit or {},
        segments=segments or {},
    )


def _events(path: Path) -> Iterator[dict[str, Any]]:
    """Events of a log in order; a last line cut off by a killed writer is no event."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as stream:
        for line in stream:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict):
                yield event


def _curves(events: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """One curve a metric with at least two points. A step logged again after a resume replaces the earlier one."""
    points: dict[str, dict[int, float]] = {}
    for event in events:
        if event.get("type") != "metrics":
            continue
        for metric, value in event["values"].items():
            points.setdefault(metric, {})[int(event["step"])] = float(value)
    curves = [_curve(metric, by_step) for metric, by_step in points.items()]
    return [curve for curve in curves if len(curve.values) > 1]


def _curve(metric: str, by_step: Mapping[int, float]) -> Curve:
    finite = sorted((step, value) for step, value in by_step.items() if math.isfinite(value))
    group = max(1, math.ceil(len(finite) / MAX_POINTS))
    groups = [finite[i : i + group] for i in range(0, len(finite), group)]
    return Curve(
        metric=metric,
        steps=[sum(step for step, _ in g) / len(g) for g in groups],
        values=[sum(value for _, value in g) / len(g) for g in groups],
        dropped=len(by_step) - len(finite),
    )
