"""Which split a row belongs to, and rows that stand where they must not: duplicates, contradictions and leaks.

Rows are split by their prompt, so a prompt of the sources stands in one split, whatever the table. The built-in task gives
its rows their splits: a leak is a row whose prompt also stands in a split that is held out further, in any table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

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


def split_of(prompt_key: int, validation_fraction: float, test_fraction: float) -> Split:
    """The split of a prompt: the same on every machine, whatever else is in the table."""
    position = prompt_key / 2**64
    if position < test_fraction:
        return "test"
    return "validation" if position < test_fraction + validation_fraction else "train"


def fill_splits(tables: Tables, given: Hashes, validation_fraction: float, test_fraction: float) -> list[tuple[TableName, Split]]:
    """Move one prompt into every split that has a share of the prompts and none of a table's; and say which these are.

    It is the prompt whose hash is nearest to that split, of those whose rows leave no split of any table empty; where there
    is none, the split stays empty. `given` are the keys of prompts that keep their splits.
    """
    low, high = test_fraction, test_fraction + validation_fraction
    bounds: dict[Split, tuple[float, float]] = {"train": (high, 1.0), "test": (0.0, low), "validation": (low, high)}
    filled: list[tuple[TableName, Split]] = []
    for table, keys in tables.items():
        for split, (start, end) in bounds.items():
            code = SPLITS.index(split)
            if start == end or not len(keys) or (keys.splits == code).any():
                continue
            prompts = np.setdiff1d(keys.prompts, given)
            positions = prompts / 2.0**64
            nearest = prompts[np.argsort(np.maximum(start - positions, positions - end), kind="stable")]
            prompt = next((prompt for prompt in nearest.tolist() if _can_leave(tables, prompt)), None)
            if prompt is not None:
                for other in tables.values():
                    other.move(prompt, code)
                filled.append((table, split))
    return filled


def _can_leave(tables: Tables, prompt: int) -> bool:
    """Whether the split of a prompt has another prompt in every table that has this one."""
    for keys in tables.values():
        own = keys.prompts == prompt
        if own.any() and not ((keys.splits == keys.splits[own.argmax()]) & ~own).any():
            return False
    return True


@dataclass(frozen=True, slots=True)
class Dropped:
    """bool[rows] by table: which rows go; and a line on each of the first `LISTED`."""

    rows: dict[TableName, Mask]
    lines: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How many rows go."""
        return sum(int(mask.sum()) for mask in self.rows.values())


def duplicates(tables: Tables, describe: Describe) -> Dropped:
    """Rows whose content came before in their table."""
    dropped = _none_dropped(tables)
    for table, keys in tables.items():
        for row, first in _repeats(keys.contents):
            dropped.rows[table][row] = True
            if len(dropped.lines) < LISTED:
                dropped.lines.append(f"{describe(table, row)} repeats {describe(table, first)}")
    return dropped


def contradictions(tables: Tables, gone: Mapping[TableName, Mask], describe: Describe) -> Dropped:
    """Rows whose opposite is in their table too: a pair and the pair with its sides swapped, an answer judged both ways.

    Both go: which of them is right cannot be told. Rows that are `gone` already take no part.
    """
    dropped = _none_dropped(tables)
    for table, keys in tables.items():
        if not len(keys.stances):
            continue
        stays, opposites = ~gone[table], keys.stances ^ np.uint64(1)
        dropped.rows[table][stays] = _among(opposites[stays], np.sort(keys.stances[stays]))
        for row in np.flatnonzero(dropped.rows[table])[: LISTED - len(dropped.lines)].tolist():
            other = int((stays & (keys.stances == opposites[row])).argmax())
            dropped.lines.append(f"{describe(table, row)} contradicts {describe(table, other)}")
    return dropped


def leaks(tables: Tables, gone: Mapping[TableName, Mask], describe: Describe) -> Dropped:
    """Rows whose prompt is also in a split held out further (test, then validation), in any table.

    Rows that are `gone` already take no part.
    """
    dropped = _none_dropped(tables)
    for split in reversed(range(len(SPLITS) - 1)):
        held = {table: ~gone[table] & (keys.splits > split) for table, keys in tables.items()}
        held_prompts = np.sort(np.concatenate([keys.prompts[held[table]] for table, keys in tables.items()]))
        for table, keys in tables.items():
            leaking = ~gone[table] & (keys.splits == split) & _among(keys.prompts, held_prompts)
            dropped.rows[table][leaking] = True
            for row in np.flatnonzero(leaking)[: LISTED - len(dropped.lines)].tolist():
                holder = _holder(tables, held, keys.prompts[row])
                dropped.lines.append(f"{describe(table, row)} leaks {describe(*holder)}")
    return dropped


def check_dropped(dropped: Mapping[str, Dropped], max_fraction: float) -> None:
    """Raise `DataError` where more than `max_fraction` of a table's rows go for one of these reasons."""
    for what, its in dropped.items():
        for table, rows in its.rows.items():
            count = int(rows.sum())
            if count > max_fraction * len(rows):
                raise DataError(
                    f"{count} of {len(rows)} rows of table '{table}' {what}, more than data.max_duplicate_fraction={max_fraction} "
                    f"allows: remove them, or set it to {_ceiling(count / len(rows))} to have them dropped. "
                    f"The first of them:{_listed(its)}"
                )


def clashing(ids: Hashes, stays: Mask) -> Mask:
    """bool[rows]: which of the rows that stay have the id of another one that does."""
    clashes = np.zeros(len(ids), bool)
    candidates = np.flatnonzero(stays & _repeated(ids))
    clashes[candidates] = _repeated(ids[candidates])
    return clashes


def _none_dropped(tables: Tables) -> Dropped:
    return Dropped({table: np.zeros(len(keys), bool) for table, keys in tables.items()})


def _ceiling(fraction: float) -> float:
    """The fraction rounded up to what people write."""
    return math.ceil(fraction * 100) / 100


def _listed(dropped: Dropped) -> str:
    return "".join(f"\n  {line}" for line in dropped.lines)


def _repeats(contents: Hashes) -> Iterator[tuple[int, int]]:
    """Rows with the content of a row before them; and the first such row."""
    firsts: dict[int, int] = {}
    for row in np.flatnonzero(_repeated(contents)).tolist():
        first = firsts.setdefault(int(contents[row]), row)
        if first != row:
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


def _holder(tables: Tables, held: Mapping[TableName, Mask], prompt: np.uint64) -> tuple[TableName, int]:
    """The first held row with this prompt."""
    same = ((table, held[table] & (keys.prompts == prompt)) for table, keys in tables.items())
    return next((table, int(mask.argmax())) for table, mask in same if mask.any())
