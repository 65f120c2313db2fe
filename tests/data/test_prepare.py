"""The data artifact: tables as the contract says, a summary that tells all, and the stage around it."""

import json
from pathlib import Path
from typing import Any, get_args

import pyarrow.parquet as pq
import pytest

from data_processing.config import SPLITS, DataConfig, ProceduresConfig, TableSource
from data_processing.errors import ConfigError, DataError
from data_processing.keys import prompt_key
from data_processing.prepare import fingerprint, prepare
from data_processing.schemas import TableName, read_table
from rlhf_core.events import EventLog
from tasks.prepare_data import STAGE
from tasks.runtime.context import StageContext

SMALL = ProceduresConfig(sft_rows=6, preference_pairs=7, prompt_rows=5, validation_rows=3, test_rows=4)


def jsonl(path: Path, rows: list[dict[str, Any]]) -> TableSource:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return TableSource(path=str(path))


def questions(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"prompt": f"Question {i}?", "response": f"Answer {i}."} for i in range(start, start + count)]


def tables(folder: Path) -> dict[str, dict[str, list[dict[str, Any]]]]:
    names = [name for name in get_args(TableName) if (folder / name).exists()]
    return {name: {split: read_table(name, folder / name / f"{split}.parquet").to_pylist() for split in SPLITS} for name in names}


def test_the_built_in_task_fills_three_tables_and_their_splits(tmp_path: Path) -> None:
    summary = prepare(DataConfig(procedures=SMALL), tmp_path, seed=0)
    counts = {name: {split: len(rows) for split, rows in splits.items()} for name, splits in tables(tmp_path).items()}
    assert counts == summary["rows"]
    assert counts == {
        name: {"train": train, "validation": 3, "test": 4} for name, train in (("sft", 6), ("preference", 7), ("prompts", 5))
    }
    assert summary["warnings"] == []


def test_no_prompt_of_the_built_in_task_stands_in_two_splits_of_any_tables(tmp_path: Path) -> None:
    prepare(DataConfig(), tmp_path, seed=0)
    by_split: dict[str, set[str]] = {split: set() for split in SPLITS}
    for splits in tables(tmp_path).values():
        for split, rows in splits.items():
            by_split[split] |= {prompt_key(row) for row in rows}
    assert not by_split["train"] & by_split["validation"]
    assert not by_split["test"] & (by_split["train"] | by_split["validation"])


def test_the_same_config_and_seed_give_the_same_artifact_and_another_seed_another(tmp_path: Path) -> None:
    def artifact(name: str, seed: int, preview_rows: int = 3) -> dict[str, bytes]:
        prepare(DataConfig(procedures=SMALL, preview_rows=preview_rows), tmp_path / name, seed)
        return {str(f.relative_to(tmp_path / name)): f.read_bytes() for f in (tmp_path / name).rglob("*") if f.is_file()}

    first = artifact("a", seed=0)
    assert artifact("b", seed=0, preview_rows=0) == first  # previews are operational
    assert artifact("c", seed=1)["sft/train.parquet"] != first["sft/train.parquet"]


def test_sources_are_split_by_id_and_stand_beside_the_built_in_task(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "rows.jsonl", questions(200))
    config = DataConfig(procedures=SMALL, sft=[source], validation_fraction=0.1, test_fraction=0.2)
    rows = prepare(config, tmp_path / "out", seed=0)["rows"]
    assert sum(rows["sft"].values()) == 200 + 6 + 3 + 4
    assert 20 < rows["sft"]["test"] - 4 < 60
    assert 5 < rows["sft"]["validation"] - 3 < 40
    assert rows["prompts"] == {"train": 5, "validation": 3, "test": 4}


def test_unpaired_rows_come_through(tmp_path: Path) -> None:
    rows = [{**row, "desirable": i % 2 == 0} for i, row in enumerate(questions(40))]
    prepare(DataConfig(procedures=None, unpaired=[jsonl(tmp_path / "rows.jsonl", rows)]), tmp_path / "out", seed=0)
    written = tables(tmp_path / "out")
    assert list(written) == ["unpaired"]
    assert sum(row["desirable"] for split in written["unpaired"].values() for row in split) == 20


def test_the_summary_is_stored_and_lists_bad_rows_duplicates_and_leaks(tmp_path: Path) -> None:
    sft = [*questions(60), questions(1)[0], {"prompt": "no answer"}]
    prompts = [{"prompt": f"Question {i}?", "id": f"other {i}"} for i in range(60)]
    config = DataConfig(
        procedures=None,
        sft=[jsonl(tmp_path / "sft.jsonl", sft)],
        prompts=[jsonl(tmp_path / "prompts.jsonl", prompts)],
        validation_fraction=0.0,
        test_fraction=0.2,
        max_bad_fraction=0.1,
        allow_duplicates=True,
        allow_leaks=True,
    )
    summary = prepare(config, tmp_path / "out", seed=0)
    assert summary["bad_rows"]["count"] == 1
    assert summary["bad_rows"]["listed"][0]["row"] == "sft.jsonl line 62"
    assert summary["duplicates"]["count"] == 1
    assert summary["leaks"]["count"] > 0
    assert sum(n for splits in summary["rows"].values() for n in splits.values()) == 120 - summary["leaks"]["count"]
    assert len(summary["warnings"]) == 5  # two empty validation splits, bad rows, duplicates, leaks
    assert [len(rows) for rows in summary.pop("previews").values()] == [3, 3]
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary


@pytest.mark.parametrize("setting", ["allow_duplicates", "allow_leaks"])
def test_duplicates_and_leaks_stop_the_run_unless_each_is_allowed(tmp_path: Path, setting: str) -> None:
    repeated = questions(60)
    rows = [*repeated, *repeated] if setting == "allow_duplicates" else [{**r, "id": str(i)} for i, r in enumerate(repeated)]
    other = [] if setting == "allow_duplicates" else [jsonl(tmp_path / "p.jsonl", [{"prompt": r["prompt"]} for r in repeated])]
    config = DataConfig(procedures=None, sft=[jsonl(tmp_path / "rows.jsonl", rows)], prompts=other, test_fraction=0.4)
    with pytest.raises(DataError, match=f"data.{setting}=true"):
        prepare(config, tmp_path / "out", seed=0)
    prepare(config.model_copy(update={setting: True}), tmp_path / "again", seed=0)


def test_rows_of_many_row_groups_keep_their_order_and_lose_only_what_repeats_or_leaks(tmp_path: Path) -> None:
    filling = "word " * 4_000
    rows = [{"prompt": f"{i} {filling}", "response": f"Answer {i}.", "id": str(i)} for i in range(1_100)]
    repeated, leaking = rows[1_000], {**rows[1_001], "id": "b", "response": "Other."}  # id "b" is in the test split
    config = DataConfig(
        procedures=None,
        sft=[jsonl(tmp_path / "rows.jsonl", [*rows, repeated, leaking])],
        validation_fraction=0.0,
        test_fraction=0.25,
        allow_duplicates=True,
        allow_leaks=True,
    )
    summary = prepare(config, tmp_path / "out", seed=0)
    written = tables(tmp_path / "out")["sft"]
    assert pq.ParquetFile(tmp_path / "out" / "sft" / "train.parquet").num_row_groups > 1
    assert {path.name for path in (tmp_path / "out" / "sft").iterdir()} == {f"{split}.parquet" for split in SPLITS}
    held_out = [int(row["id"]) for row in written["test"][:-1]]
    assert held_out == sorted(held_out)
    assert written["test"][-1]["id"] == "b"
    expected = [str(i) for i in range(1_100) if i not in held_out and i != 1_001]
    assert [row["id"] for row in written["train"]] == expected
    assert all(row["messages"][0]["content"] == rows[int(row["id"])]["prompt"] for row in written["train"])
    assert summary["duplicates"]["listed"] == [
        "sft/train id 1000 (rows.jsonl line 1101) repeats sft/train id 1000 (rows.jsonl line 1001)"
    ]
    assert summary["leaks"]["listed"] == ["sft/train id 1001 (rows.jsonl line 1002) leaks sft/test id b (rows.jsonl line 1102)"]


def test_a_table_whose_rows_all_leak_is_left_out(tmp_path: Path) -> None:
    held_out, copies = ({"prompt": "Why?", "response": response, "id": i} for response, i in (("So.", "b"), ("No.", "a")))
    config = DataConfig(
        procedures=None,
        sft=[jsonl(tmp_path / "copies.jsonl", [copies])],
        prompts=[jsonl(tmp_path / "held_out.jsonl", [held_out])],
        validation_fraction=0.25,
        test_fraction=0.25,
        allow_leaks=True,
    )
    assert list(prepare(config, tmp_path / "out", seed=0)["rows"]) == ["prompts"]
    assert list(tables(tmp_path / "out")) == ["prompts"]
    assert not (tmp_path / "out" / "sft").exists()


def test_nothing_to_prepare_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="procedures is null and no table has a source"):
        prepare(DataConfig(procedures=None), tmp_path, seed=0)
    none = ProceduresConfig(sft_rows=0, preference_pairs=0, prompt_rows=0, validation_rows=0, test_rows=0)
    with pytest.raises(DataError, match="no table has a row"):
        prepare(DataConfig(procedures=none), tmp_path, seed=0)


def test_the_fingerprint_names_each_local_source_and_follows_its_content(tmp_path: Path) -> None:
    config = DataConfig(sft=[jsonl(tmp_path / "rows.jsonl", questions(3)), TableSource(path="a/name", kind="huggingface")])
    before = fingerprint(config)
    assert [entry["place"] for entry in before] == ["data.sft[0]"]
    jsonl(tmp_path / "rows.jsonl", questions(4))
    assert fingerprint(config) != before
    (tmp_path / "rows.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"data\.sft\[0\]\.path"):
        fingerprint(config)


def test_the_stage_writes_the_artifact_and_reports_summary_and_warnings(tmp_path: Path) -> None:
    config = DataConfig(procedures=None, sft=[jsonl(tmp_path / "rows.jsonl", questions(20))], test_fraction=0.0)
    (tmp_path / "out").mkdir()
    context = StageContext(
        config=config,
        inputs={},
        refs={},
        output=tmp_path / "out",
        resume=tmp_path / "resume",
        seed=0,
        attempt=1,
        events=EventLog(tmp_path / "events.jsonl"),
    )
    STAGE.run(context)
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [event["type"] for event in events][-1] == "summary"
    assert "table 'sft' has no rows in its test split" in [event.get("message") for event in events]
    assert sum(events[-1]["values"]["rows"]["sft"].values()) == 20
    assert list(tables(tmp_path / "out")) == ["sft"]
