"""A row of every format becomes what it says, without settings; what is not used is named, and nothing is lost without a word."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_processing.config import DataConfig, TableSource
from data_processing.errors import DataError
from data_processing.prepare import TABLES, prepare
from data_processing.schemas import TableName, read_table
from data_processing.turns import extra_of, messages_of, tools_of
from tests.data.formats import BEGIN, END, PAGE, table
from tests.data.shape_cases import CASES, TOOL, ShapeCase, assistant, system, user
from tests.data.source_reading import read_source

Row = dict[str, Any]

JUDGED: list[tuple[ShapeCase, TableName]] = [(case, name) for case in CASES for name in TABLES if name in case.want]


def rows_of(folder: Path, table: str) -> list[Row]:
    """All rows of a written table, with the keys of their turns."""
    rows = [row for split in sorted(folder.glob(f"{table}/*.parquet")) for row in read_table(table, split).to_pylist()]  # type: ignore[arg-type]
    sides = {"messages", "prompt", "chosen", "rejected", "response"}
    return [
        {**row, **{side: messages_of(row, side) for side in sides & row.keys()}, "tools": tools_of(row), "extra": extra_of(row)}
        for row in rows
    ]


def prepared(folder: Path, table: TableName, rows: list[Row], **options: Any) -> tuple[list[Row], Row]:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = DataConfig.model_validate({"procedures": None, table: [{"path": str(folder / "rows.jsonl")}], **options})
    summary = prepare(config, folder / "out", seed=0)
    return rows_of(folder / "out", table), summary


@pytest.mark.parametrize(("case", "table"), JUDGED, ids=[f"{c.family}: {c.columns} as {name}" for c, name in JUDGED])
def test_a_row_of_every_format_is_used_or_refused_with_its_reason(case: ShapeCase, table: TableName, tmp_path: Path) -> None:
    want = case.want[table]
    if isinstance(want, str):
        with pytest.raises(DataError, match=f"rows.jsonl line 1: .*{want}"):
            prepared(tmp_path, table, [case.row])
        return
    (row,), _ = prepared(tmp_path, table, [case.row])
    assert {column: row[column] for column in want} == want


def test_the_documentation_shows_what_is_used() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page.partition(BEGIN)[2].partition(END)[0] == table(), "run python -m tests.data.formats"


def test_columns_and_keys_that_are_not_used_are_named_once_and_those_of_prompts_travel_with_them(tmp_path: Path) -> None:
    row = {
        "messages": [{**user("Why?"), "timestamp": 1, "annotations": []}, assistant("So.", model="m")],
        "topic": "x",
        "none": None,
    }
    source = tmp_path / "rows.jsonl"
    source.write_text(json.dumps(row) + "\n" + json.dumps({**row, "messages": [*row["messages"][:1], assistant("No.")]}) + "\n")
    read = read_source("sft", TableSource(path=str(source)), "data.sft[0]", max_bad_fraction=0)
    assert read.notes == ["data.sft[0]: columns that were not used: 'messages[].model', 'messages[].timestamp', 'topic'"]
    read = read_source("prompts", TableSource(path=str(source)), "data.prompts[0]", max_bad_fraction=0)
    assert extra_of(read.rows[0]) == {"response": [assistant("So.")], "topic": "x"}
    assert read.notes == ["data.prompts[0]: columns that were not used: 'messages[].model', 'messages[].timestamp'"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": [user("Why?"), assistant("So.", weight=-0.5)]}, "weight' is -0.5, allowed: 0"),
        ({"messages": [user("Why?"), assistant("So.", weight=float("nan"))]}, "weight' is nan, allowed: 0"),
        ({"messages": [user("Why?"), assistant("So.", train=False)]}, "every assistant turn has weight 0"),
        ({"messages": [{**user("Why?"), "weight": 1}, assistant("So.")]}, "only assistant turns are learnt"),
        ({"messages": [user("Why?"), assistant("So.")], "weight": 0.5}, "'weight' is 0.5: rows have no weights"),
        ({"messages": [user("Why?"), assistant("So.")], "tools": "not json"}, "'tools' is not valid JSON"),
        ({"messages": [user("Why?"), assistant("So.")], "tools": [{"about": 1}]}, "describes no function"),
        ({"messages": [user("Why?"), assistant("", tool_calls=[{"function": {"arguments": {}}}])]}, "no call with a name"),
        (
            {"messages": [user("Why?"), assistant("", tool_calls=[{"function": {"name": "f", "arguments": "{"}}])]},
            "arguments' is not valid JSON",
        ),
        ({"messages": [user("Why?"), assistant("So.", reasoning="a", thinking="b")]}, "two different reasonings"),
        ({"messages": [{**user("Why?"), "reasoning": "a"}, assistant("So.")]}, "which only assistant turns have"),
        ({"messages": [user("Why?"), assistant("So.")], "audio": "a.wav"}, "holds an image, audio or video"),
        ({"messages": [user("<image>A ferry?"), assistant("So.")]}, "'<image>' in the place of an image"),
        (
            {"messages": [user("Why?"), assistant("So."), user("And\n<image>"), assistant("So.")]},
            "'<image>' in the place of an image",
        ),
        ({"prompt": "<audio>\nWho speaks?", "response": "Ann."}, "'<audio>' in the place of an image"),
        ({"messages": [system("One."), user("Why?"), assistant("So.")], "system": "Two."}, "two system prompts that differ"),
        ({"prompt": "Why?", "response": "So.", "system": ["x"]}, "'system' is a list"),
        ({"prompt": "Why?", "response": "So.", "history": [["a"]]}, r"history\[0\]' is no pair"),
        ({"text": "So.", "system": "One."}, "beside a 'text'"),
        ({"text": "So.", "tools": [TOOL]}, "tools beside a 'text'"),
    ],
)
def test_what_carries_a_meaning_is_used_or_refused(tmp_path: Path, row: Row, reason: str) -> None:
    with pytest.raises(DataError, match=f"line 1: .*{reason}"):
        prepared(tmp_path, "sft", [row])


def test_elements_of_html_are_text(tmp_path: Path) -> None:
    said = (
        "What does <video> do?",
        "Is it <image> or <img>?",
        "<video> does not play",
        "```\n<svg><image></svg>\n```",
        "a <audio>",
    )
    _, summary = prepared(tmp_path, "sft", [{"prompt": text, "response": "So."} for text in said])
    assert summary["bad_rows"]["count"] == 0


def test_weights_of_turns_and_conditions_of_rows_reach_the_sft_table(tmp_path: Path) -> None:
    rows = [
        {
            "messages": [user("Why?"), assistant("So.", weight=0.5), user("And?"), assistant("No.", weight=2, train=1)],
            "condition": 0.8,
        },
        {"messages": [user("When?"), assistant("So.", weight=3, train=0), user("And?"), assistant("No.")], "condition": "good"},
    ]
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = read_source("sft", TableSource(path=str(source)), "data.sft[0]", max_bad_fraction=0)
    assert [[message.get("weight") for message in messages_of(row, "messages")] for row in read.rows] == [
        [None, 0.5, None, 2],
        [None, 0, None, None],
    ]
    assert [row["condition"] for row in read.rows] == ["0.8", "good"]
    assert read.notes == []


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "Why?", "completions": ["a", "b"], "labels": [True]}, "no lists of the same length"),
        ({"prompt": "Why?", "completions": [], "labels": []}, "no lists of the same length"),
        ({"prompt": "Why?", "completions": "a", "labels": [True]}, "no lists of the same length"),
        ({"prompt": "Why?", "completions": ["a", " "], "labels": [True, False]}, r"completions\[1\]' is empty"),
        ({"prompt": "Why?", "completions": ["a"], "labels": [-1]}, "'labels' is -1, expected true or false"),
        ({"prompt": "Why?", "completion": "a"}, "fit no known shape"),
    ],
)
def test_steps_that_cannot_be_learnt_are_refused(tmp_path: Path, row: Row, reason: str) -> None:
    with pytest.raises(DataError, match=f"line 1: .*{reason}"):
        prepared(tmp_path, "stepwise", [row])


def test_a_weight_that_only_sft_has_a_use_for_is_refused_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"weight 0\.5; other weights than 0 and 1 are for the sft table, not 'preference'"):
        prepared(
            tmp_path, "preference", [{"prompt": [user("Why?")], "chosen": [assistant("So.", weight=0.5)], "rejected": "No."}]
        )


def test_a_system_prompt_that_says_the_same_twice_stands_once_and_an_empty_one_nowhere(tmp_path: Path) -> None:
    rows = [
        {"messages": [system("One."), user("Why?"), assistant("So.")], "system": "One."},
        {"messages": [system(""), user("How?"), assistant("So.")], "system": ""},
    ]
    written, _ = prepared(tmp_path, "sft", rows)
    assert sorted(len(row["messages"]) for row in written) == [2, 3]


def test_texts_without_turns_are_split_one_by_one(tmp_path: Path) -> None:
    _, summary = prepared(tmp_path, "sft", [{"text": f"Text {i}."} for i in range(60)], test_fraction=0.2)
    assert all(0 < count < 60 for count in summary["rows"]["sft"].values())


words = st.text(st.sampled_from("abcé "), min_size=1, max_size=6).filter(str.strip)
media = st.sampled_from([{}, {}, {}, {"images": ["a.png"]}, {"images": []}, {"topic": "x"}, {"system": "Sys."}, {"weight": 0.5}])


@st.composite
def rows_of_a_format(draw: st.DrawFn) -> Row:
    """A row of some format with other texts in it, perhaps with a column more."""
    case = draw(st.sampled_from(CASES))

    def changed(value: Any, name: str = "") -> Any:
        if isinstance(value, dict):
            return {key: changed(item, key) for key, item in value.items()}
        if isinstance(value, list):
            return [changed(item, name) for item in value]
        keep = name in ("role", "from", "type", "tools") or not isinstance(value, str) or value.startswith(("{", "\n\nHuman"))
        return value if keep or draw(st.booleans()) else draw(words)

    return {**changed(case.row), **draw(media)}


@settings(max_examples=150, deadline=None)
@given(st.lists(rows_of_a_format(), min_size=1, max_size=6), st.sampled_from(TABLES))
def test_every_row_read_is_used_refused_or_dropped(rows: list[Row], table: TableName) -> None:
    with tempfile.TemporaryDirectory() as name:
        try:
            written, summary = prepared(Path(name), table, rows, max_bad_fraction=1.0, max_duplicate_fraction=1.0)
        except DataError as error:
            assert "no table has a row: " in str(error)
            return
        dropped = sum(summary[reason]["count"] for reason in ("bad_rows", "duplicates", "contradictions", "leaks"))
        assert len(rows) == summary["read"][table] == len(written) + dropped
        assert all(bad["reason"] for bad in summary["bad_rows"]["listed"])
        for row in rows:
            if row.get("images") or row.get("weight"):
                assert len(summary["bad_rows"]["listed"]) >= 1
