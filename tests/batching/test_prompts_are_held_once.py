"""Rows with the same prompt: what a line holds, what it costs, and that they are planned together."""

from __future__ import annotations

from itertools import pairwise
from typing import SupportsIndex, overload

from hypothesis import given
from hypothesis import strategies as st

from rlhf_core.batching.collate import collate
from rlhf_core.batching.rows import TokenRow
from rlhf_core.batching.sharing import line_tokens, plan_rows, runs_of_a_prompt


@st.composite
def rows_of_few_prompts(draw: st.DrawFn) -> list[TokenRow]:
    prompts = st.sampled_from([[1], [1, 2], [3, 3, 3], [1, 2, 3, 4, 5, 6]])
    responses = st.lists(st.integers(0, 9), max_size=5)
    pairs = draw(st.lists(st.tuples(prompts, responses), max_size=12))
    return [TokenRow.from_prompt_response(prompt, response) for prompt, response in pairs]


@given(rows=rows_of_few_prompts())
def test_every_row_is_read_from_the_line_with_its_positions(rows: list[TokenRow]) -> None:
    batch = collate(rows, pad_id=0, packed=True, shared=True)
    ids, positions, start = batch.input_ids[0].tolist(), batch.position_ids[0].tolist(), 0
    whole = []
    for length, prompt in batch.segments:
        before = whole[prompt] if prompt is not None else []
        whole.append([*before, *ids[start : start + length]])
        assert positions[start : start + length] == list(range(len(before), len(before) + length))
        start += length
    prompts = {segment.prompt for segment in batch.segments}
    assert [sequence for i, sequence in enumerate(whole) if i not in prompts] == [row.ids for row in rows]
    assert [positions[i] for i in batch.last_index.tolist()] == [len(row) - 1 for row in rows]


@given(rows=rows_of_few_prompts())
def test_each_target_is_predicted_from_the_token_before_it(rows: list[TokenRow]) -> None:
    batch = collate(rows, pad_id=0, packed=True, shared=True)
    places = [(row, i) for row in rows for i, learnt in enumerate(row.is_target) if learnt]
    assert batch.input_ids[0][batch.target_index].tolist() == [row.ids[i - 1] for row, i in places]
    assert batch.position_ids[0][batch.target_index].tolist() == [i - 1 for _, i in places]
    assert batch.target_ids.tolist() == [row.ids[i] for row, i in places]
    assert batch.input_ids[0][batch.target_place].tolist() == batch.target_ids.tolist()
    assert batch.position_ids[0][batch.target_place].tolist() == [i for _, i in places]


@given(rows=rows_of_few_prompts())
def test_the_cost_is_what_the_line_holds(rows: list[TokenRow]) -> None:
    for shared in (True, False):
        batch = collate(rows, pad_id=0, packed=True, shared=shared)
        assert line_tokens(rows, shared=shared) == (batch.input_ids.numel() if rows else 0)


@given(rows=rows_of_few_prompts(), max_tokens=st.integers(1, 40), world_size=st.integers(1, 3), packed=st.booleans())
def test_plans_have_every_row_once_and_are_bounded(rows: list[TokenRow], max_tokens: int, world_size: int, packed: bool) -> None:
    plan = plan_rows(rows, max_tokens, world_size, packed=packed, shared=packed)
    batches = [batch for rank in plan for batch in rank]
    assert len({len(rank) for rank in plan}) <= 1
    assert sorted(i for batch in batches for i in batch) == list(range(len(rows)))
    for batch in (batch for batch in batches if len(batch) > 1):
        parts = [rows[i] for i in batch]
        padded = len(parts) * max(len(row) for row in parts)
        assert (line_tokens(parts, shared=True) if packed else padded) <= max_tokens


@given(rows=rows_of_few_prompts())
def test_rows_of_a_prompt_stay_together_where_they_fit(rows: list[TokenRow]) -> None:
    plan = plan_rows(rows, 100, 2, packed=True, shared=True)
    for run in runs_of_a_prompt(rows):
        assert any(set(run) <= set(batch) for rank in plan for batch in rank)


def test_a_row_without_targets_shares_nothing() -> None:
    empty = TokenRow([1, 2], [False, False])
    assert runs_of_a_prompt([empty, empty, TokenRow.from_prompt_response([1, 2], [3])]) == [[0], [1], [2]]


@given(rows=rows_of_few_prompts(), max_tokens=st.integers(1, 40))
def test_a_run_is_cut_only_where_the_next_row_does_not_fit(rows: list[TokenRow], max_tokens: int) -> None:
    one_line = plan_rows(rows, 10_000, 1, packed=True, shared=True)
    assert one_line == [[list(range(len(rows)))] if rows else []]
    for run in runs_of_a_prompt(rows):
        lines = sorted(plan_rows([rows[i] for i in run], max_tokens, 1, packed=True, shared=True)[0])
        for line, following in pairwise(lines):
            grown = [rows[run[i]] for i in (*line, following[0])]
            assert following[0] != line[-1] + 1 or line_tokens(grown, shared=True) > max_tokens


def test_a_row_is_looked_at_a_few_times_however_many_have_its_prompt() -> None:
    rows = CountedRows([TokenRow.from_prompt_response([1, 2, 3], [number]) for number in range(2000)])
    plan_rows(rows, 4096, 2, packed=True, shared=True)
    assert rows.reads <= 10 * len(rows)


class CountedRows(list[TokenRow]):
    """Rows that count how often one of them is looked at."""

    reads = 0

    @overload
    def __getitem__(self, index: SupportsIndex) -> TokenRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenRow]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> TokenRow | list[TokenRow]:
        self.reads += 1
        return super().__getitem__(index)
