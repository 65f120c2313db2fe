"""Rows with their splits, checked both ways: by their hashes alone, and plainly, by all that they hold."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from data_processing.config import SPLITS, Split
from data_processing.keys import TableKeys, prompt_of, row_key
from data_processing.schemas import TableName
from data_processing.splits import Dropped, duplicates, fill_splits, leaks


@dataclass(frozen=True)
class PlacedRow:
    table: TableName
    split: Split
    row: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.table}/{self.split} id {self.row['id']} (file row {self.row['id']})"


def without_duplicates(rows: list[PlacedRow]) -> tuple[list[PlacedRow], list[str]]:
    by_table = _by_table(rows)
    dropped = duplicates(_keys(by_table), lambda table, row: str(by_table[table][row]))
    return _kept(rows, by_table, dropped)


def without_leaks(rows: list[PlacedRow]) -> tuple[list[PlacedRow], list[str]]:
    by_table = _by_table(rows)
    nothing = {table: np.zeros(len(rows), bool) for table, rows in by_table.items()}
    dropped = leaks(_keys(by_table), nothing, lambda table, row: str(by_table[table][row]))
    return _kept(rows, by_table, dropped)


def filled(
    rows: list[PlacedRow], given: list[PlacedRow], validation_fraction: float, test_fraction: float
) -> tuple[list[PlacedRow], list[tuple[TableName, Split]]]:
    """All rows in the splits they are moved to."""
    by_table = _by_table([*given, *rows])
    tables = _keys(by_table)
    prompts = np.array([row_key(placed.row)[2] for placed in given], np.uint64)
    splits = fill_splits(tables, prompts, validation_fraction, test_fraction)
    moved = [
        PlacedRow(table, SPLITS[code], placed.row)
        for table, its_rows in by_table.items()
        for placed, code in zip(its_rows, tables[table].splits.tolist(), strict=True)
    ]
    return moved, splits


def plainly_without_duplicates(rows: list[PlacedRow]) -> list[PlacedRow]:
    kept: list[PlacedRow] = []
    for placed in rows:
        if not any(placed.table == other.table and _repeats(placed.row, other.row) for other in kept):
            kept.append(placed)
    return kept


def plainly_without_leaks(rows: list[PlacedRow]) -> list[PlacedRow]:
    def leaks_into(placed: PlacedRow, other: PlacedRow) -> bool:
        return words(placed.row) == words(other.row) and SPLITS.index(other.split) > SPLITS.index(placed.split)

    return [placed for placed in rows if not any(leaks_into(placed, other) for other in rows)]


def words(row: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """The prompt of a row: roles and words, whatever the case."""
    return [(message["role"], message["content"].casefold().split()) for message in prompt_of(row)]


def _repeats(row: dict[str, Any], other: dict[str, Any]) -> bool:
    aside = {"id", "source", "detail", "margin"}
    return all(row[name] == other[name] for name in row.keys() - aside)


def _by_table(rows: list[PlacedRow]) -> dict[TableName, list[PlacedRow]]:
    tables: tuple[TableName, ...] = ("sft", "prompts")
    return {table: [r for r in rows if r.table == table] for table in tables}


def _keys(by_table: dict[TableName, list[PlacedRow]]) -> dict[TableName, TableKeys]:
    tables: dict[TableName, TableKeys] = {}
    for table, rows in by_table.items():
        tables[table] = TableKeys()
        for number, placed in enumerate(rows, 1):
            tables[table].add(row_key(placed.row), placed.split, "file row", number)
    return tables


def _kept(
    rows: list[PlacedRow], by_table: dict[TableName, list[PlacedRow]], dropped: Dropped
) -> tuple[list[PlacedRow], list[str]]:
    places = {id(placed): (table, i) for table, its_rows in by_table.items() for i, placed in enumerate(its_rows)}
    kept = [placed for placed in rows for table, i in [places[id(placed)]] if not dropped.rows[table][i]]
    assert len(rows) - len(kept) == dropped.count
    return kept, dropped.lines
