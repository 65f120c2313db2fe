"""The data artifact: tables as the contract says, a summary that tells all, and the stage around it."""

import json
import tempfile
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_processing.config import SPLITS, DataConfig, ProceduresConfig, TableSource
from data_processing.errors import ConfigError, DataError
from data_processing.keys import prompt_key, prompt_of
from data_processing.prepare import fingerprint, prepare
from data_processing.procedures.rows import procedures_rows
from data_processing.schemas import TableName, read_table
from rlhf_core.events import EventLog
from tasks.prepare_data import STAGE
from tasks.runtime.contract.context import StageContext

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
            by_split[split] |= {prompt_key(prompt_of(row)) for row in rows}
    assert not by_split["train"] & by_split["validation"]
    assert not by_split["test"] & (by_split["train"] | by_split["validation"])


def test_the_same_config_and_seed_give_the_same_artifact_and_another_seed_another(tmp_path: Path) -> None:
    def artifact(name: str, seed: int, preview_rows: int = 3) -> dict[str, bytes]:
        prepare(DataConfig(procedures=SMALL, preview_rows=preview_rows), tmp_path / name, seed)
        return {str(f.relative_to(tmp_path / name)): f.read_bytes() for f in (tmp_path / name).rglob("*") if f.is_file()}

    first = artifact("a", seed=0)
    assert artifact("b", seed=0, preview_rows=0) == first  # previews are operational
    assert artifact("c", seed=1)["sft/train.parquet"] != first["sft/train.parquet"]


def held_out_prompts(count: int) -> list[str]:
    """Test prompts of the built-in task with the settings `SMALL`."""
    return [row["prompt"][0]["content"] for row in procedures_rows(SMALL, seed=0)["prompts", "test"][:count]]


def split_by_prompt(folder: Path) -> dict[int, set[str]]:
    """The splits each prompt stands in, in any table."""
    homes: dict[int, set[str]] = {}
    for splits in tables(folder).values():
        for split, rows in splits.items():
            for row in rows:
                homes.setdefault(prompt_key(prompt_of(row)), set()).add(split)
    return homes


def test_sources_are_split_by_prompt_and_stand_beside_the_built_in_task(tmp_path: Path) -> None:
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


one_row = st.fixed_dictionaries(
    {
        "prompt": st.sampled_from(["Why?", "why ?", " WHY?", "How?", "é", "e\u0301", *"abcdefgh"]),
        "response": st.sampled_from("xyz"),
    }
)
sources = st.lists(
    st.tuples(st.sampled_from(["sft", "preference", "prompts", "unpaired"]), st.lists(one_row, min_size=1, max_size=8))
)


@settings(deadline=None, max_examples=40)
@given(sources.filter(bool), st.sampled_from([0.0, 0.1, 0.4]), st.sampled_from([0.0, 0.1, 0.4]), st.booleans())
def test_rows_of_one_prompt_share_a_split_whatever_tables_and_sources_they_are_in(
    sources: list[tuple[str, list[dict[str, str]]]], validation: float, test: float, with_ids: bool
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        given: dict[str, list[TableSource]] = {}
        for i, (table, rows) in enumerate(sources):
            extra = {"chosen": "c", "rejected": "r", "desirable": True}
            added = extra if table in ("preference", "unpaired") else {}
            full = [{**row, **added, **({"id": number} if with_ids else {})} for number, row in enumerate(rows)]
            given.setdefault(table, []).append(jsonl(folder / f"{i}.jsonl", full))
        config = DataConfig.model_validate(
            {
                "procedures": None,
                "validation_fraction": validation,
                "test_fraction": test,
                "max_duplicate_fraction": 1.0,
                **{table: [source.model_dump() for source in listed] for table, listed in given.items()},
            }
        )
        summary = prepare(config, folder / "out", seed=0)
        assert summary["leaks"]["count"] == 0
        assert all(len(splits) == 1 for splits in split_by_prompt(folder / "out").values())
        for table, splits in tables(folder / "out").items():
            ids_of_table = [row["id"] for its in splits.values() for row in its]
            assert len(set(ids_of_table)) == len(ids_of_table) == sum(summary["rows"][table].values())
        used = sum(count for splits in summary["rows"].values() for count in splits.values())
        assert sum(summary["read"].values()) == used + summary["bad_rows"]["count"] + summary["duplicates"]["count"]


def test_rows_do_not_move_when_other_rows_and_tables_are_added(tmp_path: Path) -> None:
    first = jsonl(tmp_path / "first.jsonl", questions(100))
    others = [jsonl(tmp_path / f"{i}.jsonl", [{"id": j, **row} for j, row in enumerate(questions(80, 50 * i))]) for i in (1, 2)]
    fractions = {"validation_fraction": 0.2, "test_fraction": 0.2, "max_duplicate_fraction": 1.0}
    prepare(DataConfig(procedures=None, sft=[first], **fractions), tmp_path / "few", seed=0)
    prepare(DataConfig(procedures=SMALL, sft=[others[0], first], prompts=others, **fractions), tmp_path / "many", seed=1)
    few, many = (split_by_prompt(tmp_path / name) for name in ("few", "many"))
    assert len(few) == 100
    assert few.items() <= many.items()


def test_one_file_in_several_tables_has_each_prompt_in_the_same_split_of_all(tmp_path: Path) -> None:
    pairs = [{"prompt": f"Question {i}?", "chosen": f"Yes {i}.", "rejected": f"No {i}."} for i in range(60)]
    source = jsonl(tmp_path / "pairs.jsonl", pairs)
    config = DataConfig(
        procedures=None, sft=[source], preference=[source], prompts=[source], validation_fraction=0.2, test_fraction=0.2
    )
    rows = prepare(config, tmp_path / "out", seed=0)["rows"]
    assert rows["sft"] == rows["preference"] == rows["prompts"]
    assert sum(rows["sft"].values()) == 60
    assert all(rows["sft"].values())
    assert all(len(splits) == 1 for splits in split_by_prompt(tmp_path / "out").values())


def test_several_pairs_to_a_prompt_are_all_used(tmp_path: Path) -> None:
    pairs = [{"prompt": f"Question {i // 4}?", "chosen": f"Yes {i}.", "rejected": f"No {i}."} for i in range(240)]
    config = DataConfig(procedures=None, preference=[jsonl(tmp_path / "pairs.jsonl", pairs)], test_fraction=0.2)
    summary = prepare(config, tmp_path / "out", seed=0)
    assert sum(summary["rows"]["preference"].values()) == 240
    assert all(count % 4 == 0 for count in summary["rows"]["preference"].values())
    assert summary["leaks"]["count"] == 0


def test_prompts_in_two_normal_forms_share_a_split(tmp_path: Path) -> None:
    texts = [f"Was heißt café, naïve und ﬁn? {i}" for i in range(40)]
    chats = [{"prompt": unicodedata.normalize("NFC", text), "response": "So."} for text in texts]
    prompts = [{"prompt": f"{unicodedata.normalize('NFKD', text)}\u200b"} for text in texts]
    config = DataConfig(
        procedures=None,
        sft=[jsonl(tmp_path / "a.jsonl", chats)],
        prompts=[jsonl(tmp_path / "b.jsonl", prompts)],
        test_fraction=0.4,
    )
    prepare(config, tmp_path / "out", seed=0)
    homes = split_by_prompt(tmp_path / "out")
    assert len(homes) == 40
    assert all(len(splits) == 1 for splits in homes.values())


@pytest.mark.parametrize("count", [3, 5, 10])
def test_few_prompts_fill_every_split_with_a_share(tmp_path: Path, count: int) -> None:
    source = jsonl(tmp_path / "rows.jsonl", questions(count))
    summary = prepare(DataConfig(procedures=None, sft=[source], prompts=[source]), tmp_path / "out", seed=0)
    for rows in summary["rows"].values():
        assert sum(rows.values()) == count
        assert all(rows.values())
    assert "table 'sft' had no row for its test split: the prompt nearest to it was put there" in summary["warnings"]
    assert {name: {s: len(rows) for s, rows in splits.items()} for name, splits in tables(tmp_path / "out").items()} == summary[
        "rows"
    ]
    assert all(len(splits) == 1 for splits in split_by_prompt(tmp_path / "out").values())


def test_ids_that_start_again_in_each_file_are_told_apart_and_nothing_is_lost(tmp_path: Path) -> None:
    (tmp_path / "chat").mkdir()
    for name, start in (("a", 0), ("b", 10)):
        jsonl(tmp_path / "chat" / f"{name}.jsonl", [{"id": i, **row} for i, row in enumerate(questions(11, start))])
    config = DataConfig(procedures=None, sft=[TableSource(path=str(tmp_path / "chat"))], max_duplicate_fraction=1.0)
    summary = prepare(config, tmp_path / "out", seed=0)
    rows = [row for split in tables(tmp_path / "out")["sft"].values() for row in split]
    asked = sorted(int(row["messages"][0]["content"].removeprefix("Question ").removesuffix("?")) for row in rows)
    assert asked == list(range(21))  # question 10 ends the first file and begins the second
    assert summary["duplicates"]["count"] == 1
    ids = {row["messages"][0]["content"]: row["id"] for row in rows}
    assert len(set(ids.values())) == 21
    assert ids["Question 0?"] == "0"
    assert ids["Question 3?"].startswith("3-")
    assert ids["Question 13?"].startswith("3-")
    told = [line for line in summary["warnings"] if "have the id of another row" in line]
    assert [line.split()[0] for line in told] == ["20"]


def test_two_sources_with_the_same_ids_keep_all_their_rows(tmp_path: Path) -> None:
    sources = [
        jsonl(tmp_path / f"{name}.jsonl", [{"id": i, **row} for i, row in enumerate(questions(300, start))])
        for name, start in (("a", 0), ("b", 300))
    ]
    for config in (DataConfig(procedures=None, sft=sources), DataConfig(procedures=None, sft=sources[:1], prompts=sources[1:])):
        summary = prepare(config, tmp_path / str(len(config.sft)), seed=0)
        assert sum(count for splits in summary["rows"].values() for count in splits.values()) == 600
        for splits in tables(tmp_path / str(len(config.sft))).values():
            ids = Counter(row["id"] for rows in splits.values() for row in rows)
            assert set(ids.values()) == {1}


def test_the_summary_is_stored_and_lists_bad_rows_duplicates_and_leaks(tmp_path: Path) -> None:
    sft = [*questions(60), questions(1)[0], {"prompt": "no answer"}]
    leaking = [{"prompt": prompt, "response": "So."} for prompt in held_out_prompts(2)]
    config = DataConfig(
        procedures=SMALL,
        sft=[jsonl(tmp_path / "sft.jsonl", sft)],
        unpaired=[jsonl(tmp_path / "judged.jsonl", [{**row, "desirable": True} for row in [*questions(20), *leaking]])],
        validation_fraction=0.0,
        test_fraction=0.0,
        max_bad_fraction=0.1,
        max_duplicate_fraction=1.0,
    )
    summary = prepare(config, tmp_path / "out", seed=0)
    assert summary["bad_rows"]["count"] == 1
    assert summary["bad_rows"]["listed"][0]["row"] == "sft.jsonl line 62"
    assert summary["duplicates"]["count"] == 1
    assert summary["leaks"]["count"] == 2
    assert [line.split(" (")[1].split(")")[0] for line in summary["leaks"]["listed"]] == [
        "judged.jsonl line 21",
        "judged.jsonl line 22",
    ]
    used = {name: sum(splits.values()) for name, splits in summary["rows"].items()}
    assert used == {"sft": 13 + 60, "preference": 14, "prompts": 12, "unpaired": 20}
    assert summary["read"] == {**used, "sft": 13 + 62, "unpaired": 22}
    assert len(summary["warnings"]) == 5  # two empty splits of unpaired, bad rows, duplicates, leaks
    assert [len(rows) for rows in summary.pop("previews").values()] == [3, 3, 3, 3]
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary


def test_the_summary_names_the_columns_that_are_not_used(tmp_path: Path) -> None:
    rows = [{**row, "id": i, "desirable": True, "score": 3, "empty": None} for i, row in enumerate(questions(20))]
    rows[7]["Language"] = "en"
    source = jsonl(tmp_path / "rows.jsonl", rows)
    warnings = prepare(DataConfig(procedures=None, unpaired=[source]), tmp_path / "out", seed=0)["warnings"]
    assert "data.unpaired[0]: columns that were not used: 'Language', 'score'" in warnings


def pairs(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"Question {i}?", "chosen": f"Yes {i}.", "rejected": f"No {i}."} for i in range(count)]


def swapped(pair: dict[str, Any]) -> dict[str, Any]:
    return {**pair, "chosen": pair["rejected"], "rejected": pair["chosen"]}


@pytest.mark.parametrize(
    ("table", "rows", "key", "told"),
    [
        ("sft", [*questions(57), *questions(3)], "duplicates", "repeat the content of another row"),
        (
            "sft",
            [*questions(57), *({"prompt": p, "response": "So."} for p in held_out_prompts(3))],
            "leaks",
            "have the prompt of a row in a split held out further",
        ),
        ("preference", [*pairs(57), *map(swapped, pairs(3))], "contradictions", "contradict another row"),
        (
            "unpaired",
            [*({**row, "label": True} for row in questions(57)), *({**row, "label": False} for row in questions(3))],
            "contradictions",
            "contradict another row",
        ),
    ],
)
def test_duplicates_contradictions_and_leaks_are_dropped_and_counted_up_to_a_share_and_stop_the_stage_above_it(
    tmp_path: Path, table: str, rows: list[dict[str, Any]], key: str, told: str
) -> None:
    gone = 6 if key == "contradictions" else 3  # of a contradiction both sides go
    made = sum(len(its) for (name, _), its in procedures_rows(SMALL, seed=0).items() if name == table)
    source = jsonl(tmp_path / "rows.jsonl", rows)
    share = gone / (60 + made)
    config = DataConfig.model_validate(
        {"procedures": SMALL.model_dump(), table: [source], "max_duplicate_fraction": share, "test_fraction": 0.0}
    )
    summary = prepare(config, tmp_path / "out", seed=0)
    assert sum(summary["rows"][table].values()) == 60 + made - gone
    assert {name: summary[name]["count"] for name in ("duplicates", "contradictions", "leaks")} == {
        **dict.fromkeys(("duplicates", "contradictions", "leaks"), 0),
        key: gone,
    }
    assert len(summary[key]["listed"]) == gone
    assert [line for line in summary["warnings"] if line.startswith(f"{gone} ")]
    stricter = config.model_copy(update={"max_duplicate_fraction": share - 0.001})
    with pytest.raises(DataError, match=rf"{gone} of {60 + made} rows of table '{table}' {told}.*max_duplicate_fraction="):
        prepare(stricter, tmp_path / "again", seed=0)


TALK = [{"role": "user", "content": "Which one?"}, {"role": "assistant", "content": "This one."}]


@pytest.mark.parametrize(
    ("table", "row", "others"),
    [
        ("preference", {"prompt": "Which one?", "chosen": "This.", "rejected": "That."}, [{"margin": 0.5}, {"margin": 1.5}]),
        ("sft", {"messages": TALK}, [{"condition": "good"}, {"condition": "bad"}]),
        ("sft", {"messages": TALK}, [{"messages": [TALK[0], {**TALK[1], "weight": weight}]} for weight in (0.25, 0.5)]),
        ("sft", {"messages": TALK}, [{"tools": [{"type": "function", "function": {"name": name}}]} for name in ("a", "b")]),
        ("prompts", {"prompt": "Write a sort."}, [{"tests": "assert a"}, {"tests": "assert b"}]),
        ("prompts", {"prompt": "2 + 2?"}, [{"label": "4"}, {"label": "5"}]),
    ],
)
def test_rows_that_differ_in_anything_that_is_learnt_from_them_are_no_repeats(
    tmp_path: Path, table: str, row: dict[str, Any], others: list[dict[str, Any]]
) -> None:
    source = jsonl(tmp_path / "rows.jsonl", [row, *({**row, **other} for other in others)])
    config = DataConfig.model_validate({"procedures": None, table: [source], "max_duplicate_fraction": 1.0})
    assert sum(prepare(config, tmp_path / "out", seed=0)["rows"][table].values()) == 1 + len(others)


@pytest.mark.parametrize(
    ("table", "row", "other"),
    [
        ("sft", {"messages": TALK}, {"id": "another"}),
        ("sft", {"messages": TALK}, {"pass_rate": 0.5}),
        ("unpaired", {"prompt": "Why?", "response": "So.", "label": True}, {"pass_rate": 0.5}),
    ],
)
def test_rows_that_differ_in_where_they_come_from_are_repeats(
    tmp_path: Path, table: str, row: dict[str, Any], other: dict[str, Any]
) -> None:
    source = jsonl(tmp_path / "rows.jsonl", [row, {**row, **other}])
    config = DataConfig.model_validate({"procedures": None, table: [source], "max_duplicate_fraction": 1.0})
    assert prepare(config, tmp_path / "out", seed=0)["duplicates"]["count"] == 1


def test_pairs_contradict_each_other_whatever_their_margins(tmp_path: Path) -> None:
    rows = [{**pair, "margin": 1.0} for pair in pairs(20)] + [{**swapped(pair), "margin": 2.0} for pair in pairs(3)]
    config = DataConfig(procedures=None, preference=[jsonl(tmp_path / "rows.jsonl", rows)], max_duplicate_fraction=0.5)
    summary = prepare(config, tmp_path / "out", seed=0)
    assert (summary["contradictions"]["count"], sum(summary["rows"]["preference"].values())) == (6, 17)


def test_the_share_that_the_error_names_is_enough(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "rows.jsonl", [*questions(50), *questions(7)])
    config = DataConfig(procedures=None, sft=[source])
    with pytest.raises(DataError, match=r"7 of 57 rows .* set it to 0\.13 to have them dropped"):
        prepare(config, tmp_path / "out", seed=0)
    assert prepare(config.model_copy(update={"max_duplicate_fraction": 0.13}), tmp_path / "again", seed=0)["read"] == {"sft": 57}


def test_a_few_repeats_are_dropped_with_default_settings(tmp_path: Path) -> None:
    summary = prepare(
        DataConfig(procedures=None, sft=[jsonl(tmp_path / "a.jsonl", [*questions(986), *questions(14)])]), tmp_path, 0
    )
    assert summary["duplicates"]["count"] == 14
    assert sum(summary["rows"]["sft"].values()) == 986


@pytest.mark.parametrize("name", ["allow_duplicates", "allow_leaks"])
def test_settings_of_earlier_versions_mean_all_or_none(name: str) -> None:
    fractions = [DataConfig.model_validate({name: allowed}).max_duplicate_fraction for allowed in (True, False)]
    assert fractions == [1.0, 0.0]
    assert DataConfig.model_validate({name: True, "max_duplicate_fraction": 0.1}).max_duplicate_fraction == 0.1


def test_where_no_row_can_be_used_the_reasons_are_told(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "rows.jsonl", [{"query": str(i), "reply": "x"} for i in range(8)])
    config = DataConfig(procedures=None, sft=[source], max_bad_fraction=1.0)
    with pytest.raises(
        DataError, match=r"8 of 8 rows of '.*rows\.jsonl' cannot be used\n  rows\.jsonl line 1: columns \['query', 'reply'\]"
    ):
        prepare(config, tmp_path / "out", seed=0)
    source = jsonl(tmp_path / "rows.jsonl", [*pairs(4), *map(swapped, pairs(4))])
    config = DataConfig(procedures=None, preference=[source], max_duplicate_fraction=1.0)
    with pytest.raises(DataError, match=r"no table has a row: correct these rows.*: 8 rows contradict one another"):
        prepare(config, tmp_path / "out", seed=0)


@pytest.mark.parametrize("alike", ["{}", " {}\n", "\ufeff{}", "{}\u200b"])
def test_a_prompt_of_the_built_in_task_leaks_in_whatever_form_a_source_has_it(tmp_path: Path, alike: str) -> None:
    row = {"prompt": alike.format(held_out_prompts(1)[0]).replace("review", "REVIEW"), "response": "So."}
    source = jsonl(tmp_path / "rows.jsonl", [row])
    config = DataConfig(procedures=SMALL, sft=[source], validation_fraction=0.0, test_fraction=0.0, max_duplicate_fraction=0.01)
    with pytest.raises(DataError, match=r"1 of 14 rows .* held out further(.|\n)*leaks prompts/test"):
        prepare(config, tmp_path / "out", seed=0)


def test_rows_of_many_row_groups_keep_their_order_and_lose_only_what_repeats_or_leaks(tmp_path: Path) -> None:
    filling = "word " * 4_000
    rows = [{"prompt": f"{i} {filling}", "response": f"Answer {i}.", "id": str(i)} for i in range(1_100)]
    leaking = {"prompt": held_out_prompts(1)[0], "response": "So.", "id": "b"}
    config = DataConfig(
        procedures=SMALL,
        unpaired=[jsonl(tmp_path / "rows.jsonl", [{**row, "desirable": True} for row in [*rows, rows[1_000], leaking]])],
        validation_fraction=0.0,
        test_fraction=0.0,
        max_duplicate_fraction=1.0,
    )
    summary = prepare(config, tmp_path / "out", seed=0)
    written = tables(tmp_path / "out")["unpaired"]
    assert pq.ParquetFile(tmp_path / "out" / "unpaired" / "train.parquet").num_row_groups > 1
    assert {path.name for path in (tmp_path / "out" / "unpaired").iterdir()} == {f"{split}.parquet" for split in SPLITS}
    assert [row["id"] for row in written["train"]] == [str(i) for i in range(1_100)]
    assert all(row["prompt"][0]["content"] == rows[int(row["id"])]["prompt"] for row in written["train"])
    assert summary["duplicates"]["listed"] == [
        "unpaired/train id 1000 (rows.jsonl line 1101) repeats unpaired/train id 1000 (rows.jsonl line 1001)"
    ]
    (leak,) = summary["leaks"]["listed"]
    assert leak.startswith("unpaired/train id b (rows.jsonl line 1102) leaks prompts/test id ")
    assert leak.endswith("(procedures test row 1)")


def test_rows_that_move_or_clash_keep_what_they_hold_in_tables_of_many_row_groups(tmp_path: Path) -> None:
    filling = "word " * 4_000
    rows = [{"prompt": f"{i} {filling}", "response": f"Answer {i}.", "id": str(i % 1_000)} for i in range(1_100)]
    config = DataConfig(
        procedures=None,
        sft=[jsonl(tmp_path / "rows.jsonl", rows)],
        validation_fraction=1e-9,
        test_fraction=0.25,
    )
    counts = prepare(config, tmp_path / "out", seed=0)["rows"]["sft"]
    written = tables(tmp_path / "out")["sft"]
    assert counts["validation"] == 1
    numbers = {split: [int(row["messages"][0]["content"].split()[0]) for row in its] for split, its in written.items()}
    assert sorted(number for its in numbers.values() for number in its) == list(range(1_100))
    assert all(its == sorted(its) for its in numbers.values())
    for split, its in written.items():
        for number, row in zip(numbers[split], its, strict=True):
            assert row["messages"][1]["content"] == f"Answer {number}."
            assert (row["id"] == str(number)) == (100 <= number < 1_000)
            assert row["id"].split("-")[0] == str(number % 1_000)


def test_a_table_whose_rows_all_leak_is_left_out(tmp_path: Path) -> None:
    judged = [{"prompt": prompt, "response": "So.", "desirable": True} for prompt in held_out_prompts(2)]
    config = DataConfig(
        procedures=SMALL,
        unpaired=[jsonl(tmp_path / "judged.jsonl", judged)],
        validation_fraction=0.0,
        test_fraction=0.0,
        max_duplicate_fraction=1.0,
    )
    assert "unpaired" not in prepare(config, tmp_path / "out", seed=0)["rows"]
    assert list(tables(tmp_path / "out")) == ["sft", "preference", "prompts"]
    assert not (tmp_path / "out" / "unpaired").exists()


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
