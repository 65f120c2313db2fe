"""All that one source gives, at once."""

from dataclasses import dataclass
from typing import Any

from data_processing.config import TableSource
from data_processing.schemas import TableName
from data_processing.sources.rows import SourceRows


@dataclass(frozen=True)
class Read:
    rows: list[dict[str, Any]]
    n_read: int
    n_bad: int
    bad: list[dict[str, str]]
    notes: list[str]


def read_source(table: TableName, source: TableSource, place: str, max_bad_fraction: float) -> Read:
    source_rows = SourceRows(table, source, place, max_bad_fraction)
    rows = [row for row, _, _ in source_rows]
    return Read(rows, source_rows.n_read, source_rows.n_bad, source_rows.bad, source_rows.notes)
