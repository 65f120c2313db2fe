"""Which split a row belongs to, and rows that stand where they must not: duplicates and leaks.

A leak is a row whose id or prompt also stands in a split that is held out further, in any table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from data_processing.config import SPLITS, Split
from data_processing.errors import DataError
from data_processing.keys import Hashes, TableKeys
from data_processing.schemas import TableName

LISTED = 10
_CHUNK_ROWS = 1 << 16  # looked up at a time, so that look-ups take little memory

Mask = NDArray[np.bool_]
Tables = Mapping[TableName, TableKeys]
Describe = Callable[[TableName, int], str]  # a row of a table, by its index, for messages


def split_of(id_key: int, validation_fraction: float, test_fraction: float) -> Split:
    """The split of an id: the same on every machine, whatever else is in the table."""
    position = id_key / 2**64
    if position < test_fraction:
        return "test"
    return "validation" if position < test_fraction + validation_fraction else "train"


@dataclass(frozen=True, slots=True)
class Dropped:
    """bool[rows] by table: which rows go; and a line on each of the first `LISTED`."""

    rows: dict[TableName, Mask]
    lines: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How many rows go."""
        return sum(int(mask.sum()) for mask in self.rows.values())


def duplicates(tables: Tables, describe: Describe, allowed: bool) -> Dropped:
    """Rows whose id or content came before in their table, in a row that stays.

    Raises `DataError` where there are any and they are not allowed.
    """
    dropped = _none_dropped(tables)
    for table, keys in tables.items():
        for row, first in _repeats(keys.ids, keys.contents):
            dropped.rows[table][row] = True
            if len(dropped.lines) < LISTED:
                dropped.lines.append(f"{describe(table, row)} repeats {describe(table, first)}")
    if dropped.count and not allowed:
        raise DataError(
            f"{dropped.count} rows repeat an id or the content of another row of their table; remove them, or set "
            f"data.allow_duplicates=true to keep the first of each. The first of them:{_listed(dropped)}"
        )
    return dropped


def leaks(tables: Tables, gone: Dropped, describe: Describe, allowed: bool) -> Dropped:
    """Rows whose id or prompt is also in a split held out further (test, then validation), in any table.

    Rows that are `gone` already take no part. Raises `DataError` where there are leaks and they are not allowed.
    """
    dropped = _none_dropped(tables)
    for split in reversed(range(len(SPLITS) - 1)):
        held = {table: ~gone.rows[table] & (keys.splits > split) for table, keys in tables.items()}
        held_ids = np.sort(np.concatenate([keys.ids[held[table]] for table, keys in tables.items()]))
        held_prompts = np.sort(np.concatenate([keys.prompts[held[table]] for table, keys in tables.items()]))
        for table, keys in tables.items():
            leaking = ~gone.rows[table] & (keys.splits == split)
            leaking &= _among(keys.ids, held_ids) | _among(keys.prompts, held_prompts)
            dropped.rows[table][leaking] = True
            for row in np.flatnonzero(leaking)[: LISTED - len(dropped.lines)].tolist():
                holder = _holder(tables, held, keys.ids[row], keys.prompts[row])
                dropped.lines.append(f"{describe(table, row)} leaks {describe(*holder)}")
    if dropped.count and not allowed:
        raise DataError(
            f"{dropped.count} rows have the id or the prompt of a row in a split held out further; remove them, or set "
            f"data.allow_leaks=true to drop the copy nearer to training. The first of them:{_listed(dropped)}"
        )
    return dropped


def _none_dropped(tables: Tables) -> Dropped:
    return Dropped({table: np.zeros(len(keys), bool) for table, keys in tables.items()})


def _listed(dropped: Dropped) -> str:
    return "".join(f"\n  {line}" for line in dropped.lines)


def _repeats(ids: Hashes, contents: Hashes) -> Iterator[tuple[int, int]]:
    """Rows with the id or the content of a row before them that is no repeat itself; and that row."""
    firsts: dict[tuple[str, int], int] = {}
    for row in np.flatnonzero(_repeated(ids) | _repeated(contents)).tolist():
        own = (("id", int(ids[row])), ("content", int(contents[row])))
        first = next((firsts[key] for key in own if key in firsts), None)
        if first is None:
            firsts |= dict.fromkeys(own, row)
        else:
            yield row, first


def _repeated(hashes: Hashes) -> Mask:
    """bool[n]: which of `hashes`[n] are there more than once."""
    ordered = np.sort(hashes)
    return _among(hashes, ordered[1:][ordered[1:] == ordered[:-1]])


def _among(hashes: Hashes, ordered: Hashes) -> Mask:
    """bool[n]: which of `hashes`[n] are in `ordered`."""
    found = np.zeros(len(hashes), bool)
    for start in range(0, len(hashes) if len(ordered) else 0, _CHUNK_ROWS):
        chunk = hashes[start : start + _CHUNK_ROWS]
        found[start : start + _CHUNK_ROWS] = ordered.take(np.searchsorted(ordered, chunk), mode="clip") == chunk
    return found


def _holder(tables: Tables, held: Mapping[TableName, Mask], row_id: np.uint64, prompt: np.uint64) -> tuple[TableName, int]:
    """The first held row with this id, else with this prompt."""
    same_id = ((table, held[table] & (keys.ids == row_id)) for table, keys in tables.items())
    same_prompt = ((table, held[table] & (keys.prompts == prompt)) for table, keys in tables.items())
    return next((table, int(mask.argmax())) for table, mask in chain(same_id, same_prompt) if mask.any())
