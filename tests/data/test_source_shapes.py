"""Every row shape people have becomes the same rows of our tables; rows that fit none say why."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_processing.config import TableSource
from data_processing.errors import DataError
from data_processing.schemas import TableName, to_table, validate_table
from data_processing.sources.recognise import recognise
from data_processing.sources.record import Record, check
from data_processing.sources.turn import BadRow
from tests.data.source_reading import Read, read_source

Row = dict[str, Any]


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def system(content: str) -> dict[str, str]:
    return {"role": "system", "content": content}


def recognised(row: Row, table: TableName) -> Record:
    record, _ = recognise(row, table)
    check(record, table)
    return record


ANSWERED = Record([user("Why?")], [assistant("Because.")])
PAIR = Record([user("Why?")], [assistant("Because.")], [assistant("No.")])
TALK = [user("Hi"), assistant("Hello"), user("Why?")]


@pytest.mark.parametrize(
    ("row", "record"),
    [
        ({"messages": [user("Why?"), assistant("Because.")]}, ANSWERED),
        ({"messages": json.dumps([user("Why?"), assistant("Because.")])}, ANSWERED),
        ({"messages": [user("Why?")]}, Record([user("Why?")])),
        ({"messages": [system("Be brief."), *TALK, assistant("So.")]}, Record([system("Be brief."), *TALK], [assistant("So.")])),
        ({"prompt": "Why?", "response": "Because."}, ANSWERED),
        ({"prompt": [user("Why?")], "response": [assistant("Because.")]}, ANSWERED),
        ({"prompt": "Why?", "response": None}, Record([user("Why?")])),
        ({"prompt": "Why?"}, Record([user("Why?")])),
        ({"prompt": "\n\nHuman: Why?\n\nAssistant:", "response": "Because."}, ANSWERED),
        ({"question": "Why?", "response_j": "Because."}, ANSWERED),
        ({"question": "Why?", "response_j": "Because.", "response_k": "No."}, PAIR),
        ({"instruction": "Why?", "output": "Because."}, ANSWERED),
        ({"instruction": "Why?", "input": "", "output": "Because."}, ANSWERED),
        (
            {"instruction": "Sum up.", "input": "A text.", "output": "So."},
            Record([user("Sum up.\n\nA text.")], [assistant("So.")]),
        ),
        ({"prompt": "Why?", "chosen": "Because.", "rejected": "No."}, PAIR),
        ({"prompt": [user("Why?")], "chosen": [assistant("Because.")], "rejected": [assistant("No.")]}, PAIR),
        ({"chosen": [user("Why?"), assistant("Because.")], "rejected": [user("Why?"), assistant("No.")]}, PAIR),
        ({"prompt": "Why?", "chosen": [user("Why?"), assistant("Because.")], "rejected": [user("Why?"), assistant("No.")]}, PAIR),
        (
            {
                "chosen": "\n\nHuman: Why?\n\nAssistant: Because.",
                "rejected": "\n\nHuman: Why?\n\nAssistant: No.",
            },
            PAIR,
        ),
        (
            {
                "prompt": [system("Be brief."), user("Why?")],
                "chosen": [user("Why?"), assistant("Because.")],
                "rejected": [user("Why?"), assistant("No.")],
            },
            Record([system("Be brief."), user("Why?")], PAIR.response, PAIR.rejected),
        ),
        (
            {
                "chosen": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant: Because.\nReally: so.",
                "rejected": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant: No.",
            },
            Record(TALK, [assistant("Because.\nReally: so.")], [assistant("No.")]),
        ),
        ({"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}]}, ANSWERED),
        (
            {"conversations": [{"from": "system", "value": "S"}, {"from": "human", "value": "Why?"}]},
            Record([system("S"), user("Why?")]),
        ),
    ],
)
def test_each_known_shape_gives_prompt_and_responses(row: Row, record: Record) -> None:
    assert recognised(row, "preference" if record.rejected else "sft" if record.response else "prompts") == record


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"body": "Why?"}, r"columns \['body'\] fit no known shape"),
        ({"messages": []}, "without entries"),
        ({"messages": None}, "fit no known shape"),
        ({"messages": ["Why?"]}, r"'messages\[0\]' is a str"),
        ({"messages": [{"role": "boss", "content": "Why?"}]}, "role 'boss', allowed: system, developer, user"),
        ({"messages": [{"role": ["user"], "content": "Why?"}]}, r"role \['user'\], allowed"),
        ({"messages": [user("Why?"), {"role": "assistant", "content": None}]}, r"'messages\[1\].content' is missing"),
        ({"messages": [user("Why?"), assistant("  ")]}, r"'messages\[1\].content' is empty"),
        ({"messages": [user("Why?"), system("Late.")]}, "system message that is not the first"),
        ({"messages": [assistant("Because.")]}, "no user turn"),
        ({"messages": [user("Why?"), assistant("So."), assistant("Too.")]}, "ends with an assistant turn"),
        ({"prompt": 3, "response": "x"}, "'prompt' is a int"),
        ({"prompt": "", "response": "x"}, "'prompt' is empty"),
        ({"prompt": "Why?", "response": [user("Because.")]}, "does not start and end with an assistant"),
        ({"prompt": "Why?", "chosen": "Same.", "rejected": "Same."}, "are the same"),
        ({"chosen": "Because.", "rejected": "No."}, "has no 'prompt'"),
        ({"chosen": [user("A"), assistant("x")], "rejected": [user("B"), assistant("y")]}, "same beginning"),
        ({"chosen": [user("A"), assistant("x")], "rejected": [user("A")]}, "same beginning"),
        ({"prompt": "B", "chosen": [user("A"), assistant("x")], "rejected": [user("A"), assistant("y")]}, "'prompt' is not what"),
        ({"chosen": "\n\nHuman: A\n\nAssistant: x\n\nHuman:", "rejected": "\n\nHuman: A\n\nAssistant: y"}, "turn 3 .* is empty"),
    ],
)
def test_rows_that_cannot_be_used_say_why(row: Row, reason: str) -> None:
    with pytest.raises(BadRow, match=reason):
        recognised(row, "preference" if "chosen" in row else "sft")


@given(st.text(min_size=1).filter(str.strip), st.text(min_size=1).filter(str.strip))
def test_plain_texts_are_kept_to_the_letter(prompt: str, response: str) -> None:
    record = recognised({"messages": [user(prompt), assistant(response)]}, "sft")
    assert record == Record([user(prompt)], [assistant(response)])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "from", "value"]), inner),
    max_leaves=8,
)
tables: st.SearchStrategy[TableName] = st.sampled_from(["sft", "preference", "prompts", "unpaired"])
columns = st.sampled_from(["messages", "prompt", "response", "chosen", "rejected", "conversations", "instruction", "output"])


@settings(deadline=None)
@given(st.dictionaries(columns, json_values, max_size=4), tables)
def test_any_row_is_recognised_or_has_a_reason(row: Row, table: TableName) -> None:
    try:
        record = recognised(row, table)
    except BadRow as error:
        assert str(error)
        return
    assert record.prompt[-1]["role"] != "assistant"
    assert all(message["content"].strip() for message in record.prompt)
    assert table == "prompts" or record.response
    assert table != "preference" or record.rejected


LOOKALIKES = ["[1, 2, 3] is a list?", "[1, 2, 3]", "[not json", "[]", "Human: me, Assistant: you", '[{"name": "drill"}]']


@pytest.mark.parametrize("text", [*LOOKALIKES, json.dumps([user("a"), {"name": "b"}]), '[{"role": "user"}]'])
def test_a_text_that_only_looks_like_messages_stays_a_text(text: str) -> None:
    assert recognised({"prompt": text}, "prompts") == Record([user(text)])


json_answers = st.sampled_from(
    [
        *LOOKALIKES,
        json.dumps([assistant("Because.")]),
        json.dumps([{"from": "gpt", "value": "Because."}]),
        json.dumps([user("Hi"), assistant("Hello")]),
        "\n\nHuman: Hi\n\nAssistant: Hello",
    ]
) | st.lists(st.dictionaries(st.sampled_from(["role", "content", "name"]), st.text(max_size=3), max_size=3)).map(json.dumps)


@given(json_answers, json_answers, st.sampled_from(["Why?", [user("Why?")]]))
def test_an_answer_beside_a_text_or_a_list_is_kept_to_the_letter_whatever_it_looks_like(one: str, other: str, asked: Any) -> None:
    answered = Record([user("Why?")], [assistant(one)])
    assert recognised({"prompt": asked, "response": one}, "sft") == answered
    assert recognised({"question": asked, "response_j": one}, "sft") == answered
    assert recognised({"instruction": "Why?", "output": one}, "sft") == answered
    if one != other and json.dumps([user("Hi"), assistant("Hello")]) not in (one, other):
        pair = {"prompt": asked, "chosen": one, "rejected": other}
        assert recognised(pair, "preference") == Record([user("Why?")], [assistant(one)], [assistant(other)])


@pytest.mark.parametrize(
    ("row", "record"),
    [
        ({"prompt": [user("Why?")], "response": [assistant("Because.")]}, ANSWERED),
        ({"prompt": [user("Why?")], "response": "Because."}, ANSWERED),
        ({"prompt": [user("Why?")], "response": '[{"name": "drill"}]'}, Record(PAIR.prompt, [assistant('[{"name": "drill"}]')])),
        ({"question": [user("Why?")], "response_j": [assistant("Because.")], "response_k": [assistant("No.")]}, PAIR),
        ({"prompt": [user("Why?")], "chosen": [assistant("Because.")], "rejected": [assistant("No.")]}, PAIR),
        ({"prompt": "Why?", "chosen": [user("Why?"), assistant("Because.")], "rejected": [user("Why?"), assistant("No.")]}, PAIR),
        ({"chosen": [user("Why?"), assistant("Because.")], "rejected": [user("Why?"), assistant("No.")]}, PAIR),
        ({"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}]}, ANSWERED),
    ],
)
def test_message_lists_may_be_json_in_formats_without_lists(row: Row, record: Record) -> None:
    cells = {name: value if isinstance(value, str) else json.dumps(value) for name, value in row.items()}
    assert recognised(cells, "preference" if record.rejected else "sft") == record


BOTH = {"messages": [user("Why?"), assistant("So.")], "chosen": [user("Why?"), assistant("Because.")]}
BOTH["rejected"] = [user("Why?"), assistant("No.")]


@pytest.mark.parametrize(
    ("table", "row", "record"),
    [
        ("sft", BOTH, Record([user("Why?")], [assistant("So.")])),
        ("unpaired", BOTH, Record([user("Why?")], [assistant("So.")])),
        ("preference", BOTH, PAIR),
        (
            "sft",
            {"prompt": "Why?", "response": "So.", "chosen": "Because.", "rejected": "No."},
            Record(TALK[2:], [assistant("So.")]),
        ),
        ("preference", {"prompt": "Why?", "response": "So.", "chosen": "Because.", "rejected": "No."}, PAIR),
        ("sft", {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}, PAIR),
        ("sft", {**BOTH, "messages": [user("Why?")]}, PAIR),  # the pair has the answer that these messages lack
    ],
)
def test_of_two_candidates_the_table_says_which_is_used(table: TableName, row: Row, record: Record) -> None:
    assert recognised(row, table) == record


GREETING = [assistant("Good morning."), user("Why?"), assistant("Because.")]


@pytest.mark.parametrize("shape", ["messages", "conversations", "prompt", "chosen"])
def test_a_conversation_that_starts_with_an_assistant_turn_is_no_row_of_the_sft_table_but_may_be_a_prompt(shape: str) -> None:
    rows: dict[str, Row] = {
        "messages": {"messages": GREETING},
        "conversations": {"conversations": [{"from": turn["role"], "value": turn["content"]} for turn in GREETING]},
        "prompt": {"prompt": GREETING[:2], "response": GREETING[2:]},
        "chosen": {"chosen": GREETING, "rejected": [*GREETING[:2], assistant("No.")]},
    }
    with pytest.raises(BadRow, match="starts with an assistant turn"):
        recognised(rows[shape], "sft")
    assert recognised(rows[shape], "prompts").prompt == GREETING[:2]


def test_equal_answers_are_no_pair_but_the_one_answer_may_be_learnt() -> None:
    row = {"prompt": "Why?", "chosen": "Because.", "rejected": "Because."}
    with pytest.raises(BadRow, match="are the same"):
        recognised(row, "preference")
    assert recognised(row, "sft").response == [assistant("Because.")]


def read(tmp_path: Path, table: TableName, rows: list[Row], **options: Any) -> Read:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_source(table, TableSource(path=str(path), **options), f"data.{table}[0]", max_bad_fraction=0.0)


@pytest.mark.parametrize(
    ("table", "row", "expected"),
    [
        ("sft", {"prompt": "Why?", "response": "Because."}, {"messages": [user("Why?"), assistant("Because.")]}),
        (
            "sft",
            {"prompt": "Why?", "chosen": "Because.", "rejected": "No."},
            {"messages": [user("Why?"), assistant("Because.")]},
        ),
        (
            "preference",
            {"prompt": "Why?", "chosen": "Because.", "rejected": "No.", "margin": 0.5},
            {
                "prompt": [user("Why?")],
                "chosen": [assistant("Because.")],
                "rejected": [assistant("No.")],
                "margin": 0.5,
                "detail": None,
            },
        ),
        ("prompts", {"prompt": "1+1?", "label": 2}, {"prompt": [user("1+1?")], "label": "2", "source": "rows.jsonl"}),
        (
            "prompts",
            {"prompt": "1+1?", "response": "2"},
            {"prompt": [user("1+1?")], "label": None, "source": "rows.jsonl", "extra": '{"response":"2"}'},
        ),
        (
            "unpaired",
            {"prompt": "Why?", "response": "Because.", "desirable": "False"},
            {"prompt": [user("Why?")], "response": [assistant("Because.")], "desirable": False},
        ),
    ],
)
def test_records_become_rows_that_fit_the_table(tmp_path: Path, table: TableName, row: Row, expected: Row) -> None:
    (made,) = read(tmp_path, table, [row]).rows
    assert {k: v for k, v in made.items() if k != "id"} == {**expected, "source": "rows.jsonl"}
    validate_table(table, to_table(table, [made]), where="test")


@pytest.mark.parametrize("table", ["sft", "preference", "unpaired"])
def test_a_rows_pass_rate_is_kept_and_makes_no_other_row(tmp_path: Path, table: TableName) -> None:
    row = {"prompt": "Why?", "response": "a", "chosen": "a", "rejected": "b", "desirable": True}
    row = {
        name: row[name]
        for name in {"sft": ("prompt", "response"), "preference": ("prompt", "chosen", "rejected")}.get(
            table, ("prompt", "response", "desirable")
        )
    }
    (plain,), (rated,) = (read(tmp_path, table, [made]).rows for made in (row, {**row, "pass_rate": "0.25"}))
    assert rated == {**plain, "pass_rate": 0.25}
    with pytest.raises(DataError, match="'pass_rate' is 'often', expected a finite number"):
        read(tmp_path, table, [{**row, "pass_rate": "often"}])


@pytest.mark.parametrize(
    ("table", "row", "reason"),
    [
        ("sft", {"prompt": "Why?"}, "has no answer"),
        ("preference", {"prompt": "Why?", "response": "Because."}, "has no rejected answer"),
        ("preference", {"prompt": "Why?", "chosen": "a", "rejected": "b", "margin": "much"}, "'margin' is 'much'"),
        ("unpaired", {"prompt": "Why?", "response": "Because."}, "'desirable' is None"),
        ("prompts", {"prompt": "Why?", "id": 1.5}, "'id' is a float"),
        ("prompts", {"prompt": "Why\ud800?"}, "not valid Unicode"),
        ("prompts", {"prompt": "Why?", "id": "\ud800"}, "not valid Unicode"),
        ("prompts", {"prompt": "Why?", "label": "\ud800"}, "not valid Unicode"),
    ],
)
def test_rows_that_do_not_fit_the_table_are_listed_with_number_and_reason(
    tmp_path: Path, table: TableName, row: Row, reason: str
) -> None:
    with pytest.raises(DataError, match=f"rows.jsonl line 1: .*{reason}"):
        read(tmp_path, table, [row])


def test_ids_are_kept_where_given_and_otherwise_depend_on_the_content_only(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "id": 7},
        {"prompt": "a"},
        {"prompt": "b"},
        {"prompt": "b", "tools": None},
        {"prompt": "b", "tests": 1},
    ]
    ids = [made["id"] for made in read(tmp_path, "prompts", rows).rows]
    assert ids[0] == "7"
    assert ids[1] != ids[2] == ids[3] != ids[4]


def test_columns_are_renamed_before_shapes_are_recognised(tmp_path: Path) -> None:
    rows = [{"q": "Why?", "a": "Because."}]
    (made,) = read(tmp_path, "sft", rows, columns={"q": "prompt", "a": "response"}).rows
    assert made["messages"] == [user("Why?"), assistant("Because.")]
    with pytest.raises(DataError, match=r"columns \['a', 'q'\] fit no known shape"):
        read(tmp_path, "sft", rows)


def test_at_most_max_rows_are_read(tmp_path: Path) -> None:
    rows = [{"prompt": str(i)} for i in range(5)]
    assert read(tmp_path, "prompts", rows, max_rows=2).n_read == 2


extra_columns = st.dictionaries(st.sampled_from(["id", "label", "margin", "desirable", "response_j", "question"]), json_values)
good_columns = st.just({"prompt": "Why?", "response": "Because."}) | st.just({"prompt": "Why?", "chosen": "a", "rejected": "b"})


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tables, good_columns, extra_columns)
def test_any_row_that_is_taken_fits_its_table(tmp_path: Path, table: TableName, row: Row, extra: Row) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({**extra, **row}) + "\n")
    source = TableSource(path=str(tmp_path / "rows.jsonl"))
    result = read_source(table, source, "data", max_bad_fraction=1.0)
    assert len(result.rows) + result.n_bad == 1
    validate_table(table, to_table(table, result.rows), where="test")
