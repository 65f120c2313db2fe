"""Which rows are trained together: a seeded order of the table, and micro-batches of a bounded size that cost every rank the same."""

from __future__ import annotations

import random
from collections.abc import Sequence
from heapq import heapreplace


def order(n_rows: int, seed: int | str, epoch: int) -> list[int]:
    """A permutation of `range(n_rows)` that depends on `seed` and `epoch` alone, on every machine."""
    indices = list(range(n_rows))
    random.Random(f"{seed}/{epoch}").shuffle(indices)
    return indices


def micro_batches(lengths: Sequence[int], max_tokens: int, world_size: int, packed: bool = True) -> list[list[list[int]]]:
    """Row indices as [rank][micro-batch][row], each row exactly once; `lengths` are in tokens.

    Every rank has the same number of micro-batches, so ranks meet in every collective; where a rank has no row left its
    micro-batch is empty. A micro-batch costs at most `max_tokens` (padding counts unless `packed`), but for a single row
    that is longer. The k-th micro-batches of all ranks cost about the same. The result depends on the arguments alone;
    it takes n log n steps for n rows to fill the bins once. Padded rows are filled in once; how many bins packed rows take is
    found in a few trials.
    """
    if max_tokens < 1 or world_size < 1:
        raise ValueError(f"max_tokens={max_tokens} and world_size={world_size} must be at least 1")
    bins = _fewest(lengths, max_tokens, world_size, packed)
    bins.sort(key=lambda rows: (-_cost([lengths[i] for i in rows], packed), rows))
    return [bins[rank::world_size] for rank in range(world_size)]


def _fewest(lengths: Sequence[int], max_tokens: int, world_size: int, packed: bool) -> list[list[int]]:
    """The rows in as few bins as `_fill` needs, a multiple of `world_size`."""
    rows = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    if not packed:
        return _fill(rows, lengths, _padded_bins(rows, lengths, max_tokens, world_size), packed)[0]
    # All in units of `world_size` bins. What fits into some bins fits into more. Where bins are too few, the fullest is too full by
    # about the share of bins that is missing; the first number that suffices is left downwards in steps that double.
    most = -(-len(rows) // world_size)
    tried = -(-sum(min(length, max_tokens) for length in lengths) // (max_tokens * world_size))
    too_few, enough, step = tried - 1, most + 1, 1
    fewest: list[list[int]] = []
    while enough - too_few > 1:
        bins, fullest_tokens = _fill(rows, lengths, tried * world_size, packed)
        if fullest_tokens <= max_tokens:
            fewest, enough = bins, tried
        else:
            too_few = tried
        if enough > most:
            tried = min(-(-tried * fullest_tokens // max_tokens), most)
        else:
            tried, step = max(enough - step, (too_few + enough) // 2), 2 * step
    return fewest


def _padded_bins(rows: Sequence[int], lengths: Sequence[int], max_tokens: int, world_size: int) -> int:
    """How many bins padded rows need, the longest first: each of the first rows opens one and says how many rows it takes."""
    room, n_bins = 0, 0
    while room < len(rows):
        for row in rows[n_bins : n_bins + world_size]:
            room += max(1, max_tokens // max(lengths[row], 1))
        n_bins += world_size
    return n_bins


def _fill(rows: Sequence[int], lengths: Sequence[int], n_bins: int, packed: bool) -> tuple[list[list[int]], int]:
    """`rows`, the longest first, in `n_bins` bins, each into the bin that stays the cheapest; and the tokens of the fullest bin.

    Bins of a single row, which may be of any length, do not count as full.
    """
    bins: list[list[int]] = [[] for _ in range(n_bins)]
    # Each bin b with what it costs, as one number cost * n_bins + b, which heaps compare fastest; a padded bin, which is as wide
    # as its first row, with what it will cost with one row more.
    cheapest, fullest_tokens = list(range(n_bins)), 0
    for row in rows:
        cost, best = divmod(cheapest[0], n_bins)
        into = bins[best]
        cost_after = cost + lengths[row] if packed else (len(into) + 2) * lengths[into[0] if into else row]
        if into and packed and cost_after > fullest_tokens:
            fullest_tokens = cost_after
        into.append(row)
        heapreplace(cheapest, cost_after * n_bins + best)
    return [sorted(rows) for rows in bins], fullest_tokens


def _cost(lengths: Sequence[int], packed: bool) -> int:
    return sum(lengths) if packed else len(lengths) * max(lengths, default=0)
