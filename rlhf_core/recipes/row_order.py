"""In which order a table's rows come, and how often: passes that mix sources, and a first pass from easy to hard.

Which row stands where is a pure function of the place, so a run that is resumed needs to know its place only.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Protocol

from data_processing.errors import ConfigError
from rlhf_core.batching.balance import order
from rlhf_core.settings.training import OrderSettings


class OrderedRow(Protocol):
    """What an order can hang on."""

    @property
    def id(self) -> str:
        """For messages."""
        ...

    @property
    def source(self) -> str:
        """Where it comes from; empty where nobody knows."""
        ...

    @property
    def pass_rate(self) -> float | None:
        """The share of tries that got it right, where that was measured."""
        ...

    @property
    def length_tokens(self) -> int:
        """Tokens of all that is computed for it."""
        ...


class RowOrder:
    """Passes over a table, each as long as the table has rows.

    By default every row is in each of them once, in an order of its own. With weights a pass takes from each source as many rows as
    its share says: none oftener than once more than another of its source, over all passes together.
    """

    def __init__(self, settings: OrderSettings, rows: Sequence[OrderedRow], seed: int, n_seen: int) -> None:
        """`n_seen` rows are trained on in all; a curriculum orders those of them that are in the first pass.

        Raises `ConfigError` for a source that no row comes from, where no row is left, and for rows whose difficulty is not known.
        """
        self.n_rows, self._seed, self._n_seen = len(rows), seed, n_seen
        self._parts = [] if settings.mixes_nothing else _parts(settings, rows)
        self._ranks = _ranks(settings, rows)
        self._kept: dict[int, list[int]] = {}

    def at(self, first: int, count: int) -> list[int]:
        """The numbers of the rows at `count` places from `first` on, passes one after the other."""
        places = [divmod(place, self.n_rows) for place in range(first, first + count)]
        return [self.epoch(number)[place] for number, place in places]

    def epoch(self, number: int) -> list[int]:
        """The rows of pass `number` (from 0), in their order."""
        if number not in self._kept:
            # Two passes meet in a batch at most; to shuffle all rows for every batch would be quadratic.
            self._kept = {known: rows for known, rows in self._kept.items() if known == number - 1}
            self._kept[number] = self._epoch(number)
        return self._kept[number]

    def _epoch(self, number: int) -> list[int]:
        rows = order(self.n_rows, self._seed, number)
        if self._parts:
            mixed = [row for name, members, count in self._parts for row in self._taken(name, members, number * count, count)]
            rows = [mixed[place] for place in rows]
        if self._ranks and number == 0:
            # Of equals those come first that were drawn first.
            rows = sorted(rows[: self._n_seen], key=self._ranks.__getitem__) + rows[self._n_seen :]
        return rows

    def _taken(self, name: str, members: Sequence[int], first: int, count: int) -> list[int]:
        """`count` rows of a source from place `first` of its own passes on."""
        taken: list[int] = []
        while len(taken) < count:
            own_pass, place = divmod(first + len(taken), len(members))
            shuffled = order(len(members), f"{self._seed}/{name}", own_pass)
            taken += [members[i] for i in shuffled[place : place + count - len(taken)]]
        return taken


def _parts(settings: OrderSettings, rows: Sequence[OrderedRow]) -> list[tuple[str, list[int], int]]:
    """Each source that is taken from: its name, its rows, and how many of them a pass has."""
    by_source: dict[str, list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        by_source[row.source].append(number)
    if unknown := sorted(settings.source_weights.keys() - by_source.keys()):
        raise ConfigError(f"order.source_weights: no row comes from {unknown}; use names of the sources: {sorted(by_source)}")
    shares = _shares(settings, {name: len(members) for name, members in by_source.items()})
    return [(name, by_source[name], count) for name, count in counts(shares, len(rows)).items()]


def _shares(settings: OrderSettings, sizes: Mapping[str, int]) -> dict[str, float]:
    """(weight x rows) ^ (1 / temperature), in proportion; sources of weight 0 are left out."""
    weighted = {name: settings.source_weights.get(name, 1.0) * size for name, size in sorted(sizes.items())}
    taken = {name: value ** (1 / settings.temperature) for name, value in weighted.items() if value > 0}
    if not taken:
        raise ConfigError(f"order.source_weights={settings.source_weights}: every source weighs 0; give one of them more")
    total = math.fsum(taken.values())
    return {name: value / total for name, value in taken.items()}


def counts(shares: Mapping[str, float], n_rows: int) -> dict[str, int]:
    """Whole numbers in proportion to `shares` that add up to `n_rows`: at least 1 each where there are as many, by largest remainder."""
    found = {name: max(int(share * n_rows), 1) for name, share in shares.items()}
    by_need = sorted(shares, key=lambda name: (found[name] - shares[name] * n_rows, name))
    for name in by_need[: max(n_rows - sum(found.values()), 0)]:
        found[name] += 1
    while sum(found.values()) > n_rows and max(found.values()) > 1:
        # What raised others to 1 comes from the largest.
        found[max(found, key=lambda name: found[name])] -= 1
    return dict(list(found.items())[:n_rows])


def _ranks(settings: OrderSettings, rows: Sequence[OrderedRow]) -> list[float]:
    """What the first pass goes upwards by; empty without a curriculum."""
    if settings.curriculum == "none":
        return []
    if settings.curriculum == "length":
        return [row.length_tokens for row in rows]
    unknown = [row.id for row in rows if row.pass_rate is None]
    if unknown:
        raise ConfigError(
            f"order.curriculum='pass_rate': {len(unknown)} of {len(rows)} rows have no number in the column pass_rate (first: "
            f"'{unknown[0]}'); give them one, for example with a 'sample' entry whose table is 'prompts', or order by 'length'"
        )
    return [-row.pass_rate for row in rows if row.pass_rate is not None]
