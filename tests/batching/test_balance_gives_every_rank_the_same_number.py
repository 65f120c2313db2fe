"""Micro-batches: every row once, equal counts on every rank, bounded size, even load; and a reproducible order."""

from __future__ import annotations

import math
import random
from typing import SupportsIndex, overload

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


@given(
    lengths=lengths_of_rows,
    max_tokens=st.integers(300, 2000),
    world_size=st.integers(1, 4),
    packed=st.booleans(),
)
def test_rows_lie_where_trying_every_bin_puts_them(lengths: list[int], max_tokens: int, world_size: int, packed: bool) -> None:
    assert micro_batches(lengths, max_tokens, world_size, packed) == tried_one_by_one(lengths, max_tokens, world_size, packed)


@given(lengths=lengths_of_rows, max_tokens=st.integers(1, 299), world_size=st.integers(1, 4), packed=st.booleans())
def test_rows_too_long_need_no_more_micro_batches_than_trying_every_number(
    lengths: list[int], max_tokens: int, world_size: int, packed: bool
) -> None:
    by_trying = tried_one_by_one(lengths, max_tokens, world_size, packed)
    assert len(micro_batches(lengths, max_tokens, world_size, packed)[0]) <= len(by_trying[0])


@pytest.mark.parametrize("packed", [True, False])
def test_a_row_longer_than_a_micro_batch_adds_one_micro_batch(packed: bool) -> None:
    assert micro_batches([1000, 60, 40], 100, 1, packed) == [[[0], [1], [2]] if not packed else [[0], [1, 2]]]


@pytest.mark.parametrize("packed", [True, False])
def test_a_row_is_looked_at_a_few_times_however_many_there_are(packed: bool) -> None:
    lengths = CountedReads(random.Random(0).choices(range(20, 600), k=5000))
    micro_batches(lengths, 2048, 2, packed)
    assert lengths.reads <= 50 * len(lengths)


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


class CountedReads(list[int]):
    """Lengths that count how often one of them is looked at."""

    reads = 0

    @overload
    def __getitem__(self, index: SupportsIndex) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> int | list[int]:
        self.reads += 1
        return super().__getitem__(index)


def tried_one_by_one(lengths: list[int], max_tokens: int, world_size: int, packed: bool) -> list[list[list[int]]]:
    """The definition: each row, the longest first, into the bin that stays the cheapest, in the first number of bins that will do."""
    n_bins = -(-sum(lengths) // (max_tokens * world_size)) * world_size
    while (bins := _tried_in(lengths, max_tokens, n_bins, packed)) is None:
        n_bins += world_size
    bins.sort(key=lambda rows: (-_cost([lengths[i] for i in rows], packed), rows))
    return [bins[rank::world_size] for rank in range(world_size)]


def _tried_in(lengths: list[int], max_tokens: int, n_bins: int, packed: bool) -> list[list[int]] | None:
    bins: list[list[int]] = [[] for _ in range(n_bins)]
    for row in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        grown = [_cost([lengths[i] for i in (*rows, row)], packed) for rows in bins]
        fitting = [b for b, rows in enumerate(bins) if not rows or grown[b] <= max_tokens]
        if not fitting:
            return None
        bins[min(fitting, key=lambda b: (grown[b], b))].append(row)
    return [sorted(rows) for rows in bins]


def _cost(lengths: list[int], packed: bool) -> int:
    return sum(lengths) if packed else len(lengths) * max(lengths, default=0)
