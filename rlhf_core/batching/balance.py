"""Which rows are trained together: a seeded order of the table, and micro-batches of a bounded size that cost every rank the same."""

from __future__ import annotations

import random
from collections.abc import Sequence


def order(n_rows: int, seed: int, epoch: int) -> list[int]:
    """A permutation of `range(n_rows)` that depends on `seed` and `epoch` alone, on every machine."""
    indices = list(range(n_rows))
    random.Random(f"{seed}/{epoch}").shuffle(indices)
    return indices


def micro_batches(lengths: Sequence[int], max_tokens: int, world_size: int, packed: bool = True) -> list[list[list[int]]]:
    """Row indices as [rank][micro-batch][row], each row exactly once; `lengths` are in tokens.

    Every rank has the same number of micro-batches, so ranks meet in every collective; where a rank has no row left its
    micro-batch is empty. A micro-batch costs at most `max_tokens` (padding counts unless `packed`), but for a single row
    that is longer. The k-th micro-batches of all ranks cost about the same. The result depends on the arguments alone.
    """
    if max_tokens < 1 or world_size < 1:
        raise ValueError(f"max_tokens={max_tokens} and world_size={world_size} must be at least 1")
    n_bins = _rounded_up(-(-sum(lengths) // max_tokens), world_size)
    while (bins := _fill(lengths, max_tokens, n_bins, packed)) is None:
        n_bins += world_size
    bins.sort(key=lambda rows: (-_cost([lengths[i] for i in rows], packed), rows))
    return [bins[rank::world_size] for rank in range(world_size)]


def _fill(lengths: Sequence[int], max_tokens: int, n_bins: int, packed: bool) -> list[list[int]] | None:
    """Rows into exactly `n_bins` bins, the longest first, each into the bin that stays the cheapest; None if they do not fit."""
    bins: list[list[int]] = [[] for _ in range(n_bins)]
    costs = [0] * n_bins
    for row in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        # Rows come longest first, so a padded bin is as wide as its first row.
        grown = [costs[b] + (lengths[row] if packed or not rows else lengths[rows[0]]) for b, rows in enumerate(bins)]
        fitting = [b for b, rows in enumerate(bins) if not rows or grown[b] <= max_tokens]
        if not fitting:
            return None
        best = min(fitting, key=lambda b: (grown[b], b))
        bins[best].append(row)
        costs[best] = grown[best]
    return [sorted(rows) for rows in bins]


def _cost(lengths: Sequence[int], packed: bool) -> int:
    return sum(lengths) if packed else len(lengths) * max(lengths, default=0)


def _rounded_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
