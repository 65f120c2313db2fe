"""What prepare_data takes, a stage can use: one gate, and what it lets through is rendered by a template that refuses no role."""

import json
from pathlib import Path
from typing import Any

import pytest
from family_cases import IM_TOKENS
from hypothesis import given, settings
from hypothesis import strategies as st
from template_cases import byte_level

from data_processing.config import TableSource
from data_processing.prepare import TABLES
from data_processing.schemas import TableName
from data_processing.sources.columns import ROW_BUILDERS
from data_processing.sources.recognise import recognise
from data_processing.sources.record import check
from data_processing.sources.turn import BadRow
from data_processing.turns import messages_of, tools_of
from rlhf_core.batching.chat_templates import read_template
from rlhf_core.batching.templates import PLAIN_TEMPLATE, Renderer
from rlhf_core.recipes.examples import conversation, pair, steps
from tests.data.shape_cases import CASES
from tests.data.source_reading import read_source

RENDERER = Renderer(byte_level(["<|end|>"], bos=None, eos="<|end|>"), PLAIN_TEMPLATE)

TURNS = [
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "Because."},
    {"role": "assistant", "content": "[]"},
    {"role": "tool", "content": "\u200b"},
    {"role": "system", "content": "Be brief."},
    {"role": "assistant", "content": " "},
]
turns = st.lists(st.sampled_from(TURNS[:3]) | st.sampled_from(TURNS), max_size=4)
source_rows = st.one_of(
    st.fixed_dictionaries({"messages": turns}),
    st.fixed_dictionaries({"prompt": turns, "response": turns}),
    st.fixed_dictionaries({"chosen": turns, "rejected": turns}),
    st.fixed_dictionaries({"prompt": turns, "chosen": turns, "rejected": turns}),
)


@settings(max_examples=300, deadline=None)
@given(source_rows, st.sampled_from(["sft", "preference", "prompts"]))
def test_every_row_that_is_prepared_is_rendered_and_has_something_to_learn(source_row: dict[str, Any], table: TableName) -> None:
    try:
        record, _ = recognise(source_row, table)
        check(record, table)
    except BadRow:
        return
    row = {"id": "1", **ROW_BUILDERS[table](record, source_row)}
    if table == "prompts":
        assert RENDERER.prompt_ids(row["prompt"])
    else:
        rows = (conversation if table == "sft" else pair)(RENDERER, row).rows
        assert all(token_row.n_targets > 0 for token_row in rows)


TOOLS_RENDERER = Renderer(byte_level(IM_TOKENS, bos=None, eos="<|im_end|>"), read_template("qwen3"))
NOT_SAID = {"role", "from", "type", "id", "tool_call_id", "url"}


def with_unique_words(value: Any, words: list[str], name: str = "") -> Any:
    """The row with a word of its own in every text."""
    if isinstance(value, dict):
        return {key: with_unique_words(item, words, key) for key, item in value.items()}
    if isinstance(value, list):
        return [with_unique_words(item, words, name) for item in value]
    if not isinstance(value, str) or name in NOT_SAID:
        return value
    if value.startswith(("{", "[")):
        return json.dumps(with_unique_words(json.loads(value), words))
    words.append(f"word{len(words)}x")
    return f"{value} {words[-1]}" if not value.startswith("\n\nHuman") else value.replace("Human: ", f"Human: {words[-1]} ")


def rendered(table: str, row: dict[str, Any]) -> str:
    """All that a stage makes of a row: the text of its tokens; with a prompt's label and further columns."""
    tools, decode = tools_of(row), TOOLS_RENDERER.tokenizer.decode
    if table == "prompts":
        ids = TOOLS_RENDERER.prompt_ids(messages_of(row, "prompt"), tools)
        return decode(ids) + str(row["label"]) + str(row.get("extra"))
    if table == "unpaired":
        row = {**row, "chosen": row["response"], "rejected": [{"role": "assistant", "content": "-"}], "margin": None}
        row["turns"] = [{**turn, "side": turn["side"].replace("response", "chosen")} for turn in row.get("turns") or ()]
    example = {"sft": conversation, "stepwise": steps}.get(table, pair)(TOOLS_RENDERER, row)
    return "".join(decode(tokens.ids) for tokens in example.rows)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.family}: {case.columns}")
def test_every_text_of_a_row_that_is_used_is_rendered_or_its_column_is_named(case: Any, table: TableName, tmp_path: Path) -> None:
    words: list[str] = []
    source_row = with_unique_words(case.row, words)
    (tmp_path / "rows.jsonl").write_text(json.dumps(source_row))
    read = read_source(table, TableSource(path=str(tmp_path / "rows.jsonl")), "data", max_bad_fraction=1.0)
    assert read.n_bad + len(read.rows) == 1
    for row in read.rows:
        found = rendered(table, row) + (str(row["margin"]) if "margin" in row else "")
        for column, value in source_row.items():
            if any(f"'{column}'" in note for note in read.notes):
                continue
            assert [word for word in words if word in json.dumps(value) and word not in found] == [], column
