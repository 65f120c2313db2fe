"""Micro-batches: every row once, equal counts on every rank, bounded size, even load; and a reproducible order."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_core.batching.balance import micro_batches, order

lengths_of_rows = st.lists(st.integers(1, 300), max_size=60)


@given(lengths=lengths_of_rows, max_tokens=st.integers(1, 400), world_size=st.integers(1, 5), packed=st.booleans())
def test_every_row_once_same_count_on_every_rank_and_no_micro_batch_too_large(
    lengths: list[int], max_tokens: int, world_size: int, packed: bool
) -> None:
    batches = micro_batches(lengths, max_tokens, world_size, packed)
    assert len(batches) == world_size
    assert len({len(rank) for rank in batches}) == 1
    assert sorted(row for rank in batches for rows in rank for row in rows) == list(range(len(lengths)))
    for rows in (rows for rank in batches for rows in rank if len(rows) > 1):
        sizes = [lengths[row] for row in rows]
        assert (sum(sizes) if packed else len(sizes) * max(sizes)) <= max_tokens


@given(lengths=lengths_of_rows, world_size=st.integers(1, 4), packed=st.booleans())
def test_a_rank_runs_empty_only_when_there_are_too_few_rows_for_all(lengths: list[int], world_size: int, packed: bool) -> None:
    batches = micro_batches(lengths, 10_000_000, world_size, packed)
    filled = sum(1 for rank in batches for rows in rank if rows)
    assert filled == min(len(lengths), world_size)


@given(lengths=st.lists(st.integers(1, 100), min_size=1, max_size=60), world_size=st.integers(2, 4))
def test_ranks_differ_by_no_more_than_the_longest_row_a_round(lengths: list[int], world_size: int) -> None:
    batches = micro_batches(lengths, 200, world_size)
    for round_of_batches in zip(*batches, strict=True):
        loads = [sum(lengths[row] for row in rows) for rows in round_of_batches]
        assert max(loads) - min(loads) <= max(lengths)


@given(lengths=lengths_of_rows)
def test_the_same_rows_give_the_same_micro_batches(lengths: list[int]) -> None:
    assert micro_batches(lengths, 128, 2) == micro_batches(list(lengths), 128, 2)


def test_packed_micro_batches_are_few() -> None:
    lengths = [40, 10, 25, 25, 30, 20, 50] * 8
    batches = micro_batches(lengths, 100, 1)
    assert len(batches[0]) <= math.ceil(sum(lengths) / 100) + 1


def test_without_rows_there_is_nothing_to_run() -> None:
    assert micro_batches([], 100, 3) == [[], [], []]


@pytest.mark.parametrize(("max_tokens", "world_size"), [(0, 1), (10, 0)])
def test_impossible_sizes_are_refused(max_tokens: int, world_size: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        micro_batches([1], max_tokens, world_size)


@given(n_rows=st.integers(0, 100), seed=st.integers(0, 2**31), epoch=st.integers(0, 10))
def test_an_epoch_takes_every_row_once(n_rows: int, seed: int, epoch: int) -> None:
    assert sorted(order(n_rows, seed, epoch)) == list(range(n_rows))


def test_the_order_depends_on_seed_and_epoch_and_on_nothing_else() -> None:
    assert order(8, seed=0, epoch=0) == [0, 2, 1, 4, 6, 7, 3, 5]
    assert len({tuple(order(50, seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9
