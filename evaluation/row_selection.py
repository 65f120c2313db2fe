"""Which rows of the test split are measured: a seeded sample of every source, without rows that do not fit the model."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_processing.errors import ConfigError, DataError
from data_processing.schemas import hash64
from rlhf_core.models.folder import max_positions

_NAMED_ROWS = 5


@dataclass(frozen=True, slots=True)
class DrawnRow:
    """A row of the sample: its id, its source (empty in tables without) and its tokens under the model's template."""

    id: str
    source: str
    tokens: int

    def __str__(self) -> str:
        return f"'{self.id}' ({self.tokens} tokens{f', source {self.source}' if self.source else ''})"


@dataclass(frozen=True, slots=True)
class RowCounts:
    """What was measured of a table's test split: how many rows of how many, by source, and what was left out of the sample.

    `left_out` are rows too long for the model, `refused` has a line for each row that its chat template refuses.
    """

    measured: int
    of: int
    sources: Mapping[str, tuple[int, int]]
    left_out: Sequence[DrawnRow]
    refused: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        """The fields as a JSON object."""
        sources = {name: {"measured": measured, "of": of} for name, (measured, of) in self.sources.items()}
        left_out = [asdict(row) for row in self.left_out]
        return {"measured": self.measured, "of": self.of, "sources": sources, "left_out": left_out, "refused": [*self.refused]}


def draw_rows(ids: Sequence[str], sources: Sequence[str], most: int | None, seed: int) -> list[int]:
    """Indices of at most `most` rows (None: all), in the table's order.

    Each source gives as many rows as `places` says, those whose hash of seed and id is least: the order of the table does not
    change which they are, and rows that are added only where they take a place.
    """
    left = places(Counter(sources), len(ids) if most is None else most)
    drawn = []
    for i in sorted(range(len(ids)), key=lambda i: hash64(f"{seed}\n{ids[i]}".encode())):
        if left[sources[i]]:
            left[sources[i]] -= 1
            drawn.append(i)
    return sorted(drawn)


def places(sizes: Mapping[str, int], most: int) -> dict[str, int]:
    """How many of `most` places each source of `sizes` rows gets.

    One each, the largest first; each further place goes to the source that has fewest for its size (Sainte-Laguë). So shares
    are proportional but for the first place, and more places never take one away.
    """
    given = dict.fromkeys(sizes, 0)
    waiting = [(0.0, -size, source) for source, size in sizes.items()]
    heapq.heapify(waiting)
    for _ in range(min(most, sum(sizes.values()))):
        _, negative, source = heapq.heappop(waiting)
        given[source] += 1
        if given[source] < -negative:
            heapq.heappush(waiting, ((2 * given[source] + 1) / -negative, negative, source))
    return given


def fitting(table: str, rows: Sequence[DrawnRow], model: Path, *, new_tokens: int, max_dropped_fraction: float) -> list[int]:
    """Indices of the rows that leave room for `new_tokens` among the positions of `model`.

    Raises `ConfigError` where none does, `DataError` naming rows where more than `max_dropped_fraction` of them do not.
    """
    positions = max_positions(model)
    if positions is None:
        return list(range(len(rows)))
    room = positions - new_tokens
    overlong = [row for row in rows if row.tokens > room]
    if overlong and len(overlong) == len(rows):
        lengths = sorted(row.tokens for row in rows)
        beside = f"evaluate.max_new_tokens={new_tokens} behind " if new_tokens else ""
        raise ConfigError(
            f"{beside}the longest test prompt of {lengths[-1]} tokens, and even the shortest of {lengths[0]} (table '{table}'), is more "
            f"than the {positions} positions of model {model}: shorten answers or rows, or choose a model with more positions"
        )
    if len(overlong) > max_dropped_fraction * len(rows):
        raise DataError(
            f"table '{table}', split 'test': {len(overlong)} of the {len(rows)} rows drawn are longer than the {room} tokens that "
            f"the model has room for ({positions} positions less {new_tokens} new tokens), more than "
            f"evaluate.max_dropped_fraction={max_dropped_fraction} allows: {named(overlong)}; shorten or remove them, or raise it"
        )
    return [i for i, row in enumerate(rows) if row.tokens <= room]


def count_rows(rows: Sequence[DrawnRow], kept: Sequence[int], sources: Sequence[str], refused: Sequence[str] = ()) -> RowCounts:
    """What became of the drawn rows, those that the template refused apart; `sources` are those of all rows of the table."""
    measured, sizes = Counter(rows[i].source for i in kept), Counter(sources)
    by_source = {name: (measured[name], size) for name, size in sorted(sizes.items()) if name}
    stays = set(kept)
    return RowCounts(len(kept), len(sources), by_source, [row for i, row in enumerate(rows) if i not in stays], refused)


def named(rows: Sequence[DrawnRow]) -> str:
    """The first few rows in words."""
    return ", ".join(map(str, rows[:_NAMED_ROWS])) + (", ..." if len(rows) > _NAMED_ROWS else "")
