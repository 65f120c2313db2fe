"""Which rows are trained together: a seeded order of the table, and micro-batches of a bounded size that cost every rank the same."""

from __future__ import annotations

import random
from collections.abc import Sequence
from heapq import heapreplace


def order(n_rows: int, seed: int, epoch: int) -> list[int]:
    """A permutation of `range(n_rows)` that depends on `seed` and `epoch` alone, on every machine."""
    indices = list(range(n_rows))
    random.Random(f"{seed}/{epoch}").shuffle(indices)
    return indices


def micro_batches(lengths: Sequence[int], max_tokens: int, world_size: int, packed: bool = True) -> list[list[list[int]]]:
    """Row indices as [rank][micro-batch][row], each row exactly once; `lengths` are in tokens.

    Every rank has the same number of micro-batches, so ranks meet in every collective; where a rank has no row left its
    micro-batch is empty. A micro-batch costs at most `max_tokens` (padding counts unless `packed`), but for a single row
    that is longer. The k-th micro-batches of all ranks cost about the same. The result depends on the arguments alone;
    it takes n log n steps for n rows to fill the bins once, and a logarithm of n times that to find how many they are.
    """
    if max_tokens < 1 or world_size < 1:
        raise ValueError(f"max_tokens={max_tokens} and world_size={world_size} must be at least 1")
    bins = _fewest(lengths, max_tokens, world_size, packed)
    bins.sort(key=lambda rows: (-_cost([lengths[i] for i in rows], packed), rows))
    return [bins[rank::world_size] for rank in range(world_size)]


def _fewest(lengths: Sequence[int], max_tokens: int, world_size: int, packed: bool) -> list[list[int]]:
    """The rows in as few bins as `_fill` needs, a multiple of `world_size`.

    What fits into some bins fits into more: each bin of the larger number then holds no more than its like of the smaller.
    So the number is found in steps that double until the rows fit, and then halve; the first is a power of 2 near 2 % of it.
    """
    rows = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    least = -(-sum(min(length, max_tokens) for length in lengths) // (max_tokens * world_size))
    too_few, step = least - 1, 1 << (least // 64).bit_length()
    while (bins := _fill(rows, lengths, max_tokens, (too_few + step) * world_size, packed)) is None:
        too_few, step = too_few + step, 2 * step
    while step > 1:
        step //= 2
        fewer = _fill(rows, lengths, max_tokens, (too_few + step) * world_size, packed)
        too_few, bins = (too_few + step, bins) if fewer is None else (too_few, fewer)
    return bins


def _fill(rows: Sequence[int], lengths: Sequence[int], max_tokens: int, n_bins: int, packed: bool) -> list[list[int]] | None:
    """`rows`, the longest first, into exactly `n_bins` bins, each into the bin that stays the cheapest; None if they do not fit."""
    bins: list[list[int]] = [[] for _ in range(n_bins)]
    # Each bin b with what it costs, as one number cost * n_bins + b, which heaps compare fastest; a padded bin, which is as wide
    # as its first row, with what it will cost with one row more.
    cheapest = list(range(n_bins))
    for row in rows:
        if not bins:
            return None
        cost, best = divmod(cheapest[0], n_bins)
        into, length = bins[best], lengths[row]
        if into and (cost + length if packed else cost) > max_tokens:
            return None
        into.append(row)
        heapreplace(cheapest, (cost + length if packed else (len(into) + 1) * lengths[into[0]]) * n_bins + best)
    return [sorted(rows) for rows in bins]


def _cost(lengths: Sequence[int], packed: bool) -> int:
    return sum(lengths) if packed else len(lengths) * max(lengths, default=0)
