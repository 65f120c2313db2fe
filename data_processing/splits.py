"""Which split a row belongs to, and rows that stand where they must not: duplicates and leaks.

A leak is a row whose id or prompt also stands in a split that is held out further, in any table.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, get_args

from data_processing.config import Split
from data_processing.errors import DataError
from data_processing.schemas import TableName, content_id

SPLITS: tuple[Split, ...] = get_args(Split)
LISTED = 10
# Columns that do not make two rows different.
_ASIDE = frozenset({"id", "source", "detail", "margin"})


@dataclass(frozen=True, slots=True)
class PlacedRow:
    """A row, its table and split, and the place it came from, for messages."""

    table: TableName
    split: Split
    row: dict[str, Any]
    where: str

    def __str__(self) -> str:
        return f"{self.table}/{self.split} id {self.row['id']} ({self.where})"


def split_of(row_id: str, validation_fraction: float, test_fraction: float) -> Split:
    """The split of an id: the same on every machine, whatever else is in the table."""
    position = int.from_bytes(hashlib.sha256(row_id.encode()).digest()[:8], "big") / 2**64
    if position < test_fraction:
        return "test"
    return "validation" if position < test_fraction + validation_fraction else "train"


def without_duplicates(rows: Iterable[PlacedRow], allowed: bool) -> tuple[list[PlacedRow], list[str]]:
    """Rows without those whose id or content came before in their table, and a line on each of those.

    Raises `DataError` where there are any and they are not allowed.
    """
    kept: list[PlacedRow] = []
    dropped: list[str] = []
    seen: dict[tuple[str, str, str], PlacedRow] = {}
    for placed in rows:
        content = content_id({k: v for k, v in placed.row.items() if k not in _ASIDE})
        keys = [(placed.table, "id", placed.row["id"]), (placed.table, "content", content)]
        first = next((seen[key] for key in keys if key in seen), None)
        if first is None:
            seen.update(dict.fromkeys(keys, placed))
            kept.append(placed)
        else:
            dropped.append(f"{placed} repeats {first}")
    if dropped and not allowed:
        raise DataError(
            f"{len(dropped)} rows repeat an id or the content of another row of their table; remove them, or set "
            f"data.allow_duplicates=true to keep the first of each. The first of them:{_listed(dropped)}"
        )
    return kept, dropped


def without_leaks(rows: list[PlacedRow], allowed: bool) -> tuple[list[PlacedRow], list[str]]:
    """Rows without those whose id or prompt is also in a split held out further (test, then validation), in any table.

    Also returns a line on each dropped row. Raises `DataError` where there are any and they are not allowed.
    """
    kept: list[PlacedRow] = []
    dropped: list[str] = []
    held_out: dict[tuple[str, str], PlacedRow] = {}
    for split in reversed(SPLITS):
        for placed in (r for r in rows if r.split == split):
            leak = next((held_out[key] for key in _leak_keys(placed) if key in held_out), None)
            if leak is None:
                kept.append(placed)
            else:
                dropped.append(f"{placed} leaks {leak}")
        held_out |= {key: placed for placed in rows if placed.split == split for key in _leak_keys(placed)}
    if dropped and not allowed:
        raise DataError(
            f"{len(dropped)} rows have the id or the prompt of a row in a split held out further; remove them, or set "
            f"data.allow_leaks=true to drop the copy nearer to training. The first of them:{_listed(dropped)}"
        )
    return kept, dropped


def _leak_keys(placed: PlacedRow) -> list[tuple[str, str]]:
    return [("id", placed.row["id"]), ("prompt", prompt_key(placed.row))]


def prompt_key(row: dict[str, Any]) -> str:
    """What makes two prompts the same: roles and words, whatever the case and the white space."""
    prompt = row["prompt"] if "prompt" in row else row["messages"][:-1]
    return content_id([[m["role"], " ".join(m["content"].casefold().split())] for m in prompt])


def _listed(lines: list[str]) -> str:
    return "".join(f"\n  {line}" for line in lines[:LISTED])
