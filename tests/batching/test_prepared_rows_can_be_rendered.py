"""What prepare_data takes, a stage can use: one gate, and what it lets through is rendered by a template that refuses no role."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from template_cases import byte_level

from data_processing.schemas import TableName
from data_processing.sources.recognise import recognise
from data_processing.sources.record import check
from data_processing.sources.rows import ROW_BUILDERS
from data_processing.sources.turn import BadRow
from rlhf_core.batching.templates import PLAIN_TEMPLATE, Renderer
from rlhf_core.recipes.examples import conversation, pair

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
