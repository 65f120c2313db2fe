"""Sources and the built-in task → the tables of a `data` artifact."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_processing.config import DataConfig, SourceKind, Split, TableSource
from data_processing.errors import ConfigError, DataError
from data_processing.procedures_rows import SOURCE, procedures_rows
from data_processing.schemas import TableName, to_table, write_table
from data_processing.sources.files import file_fingerprint
from data_processing.sources.rows import SourceRows, read_source
from data_processing.splits import LISTED, SPLITS, PlacedRow, split_of, without_duplicates, without_leaks

TABLES: tuple[TableName, ...] = ("sft", "preference", "prompts", "unpaired")

_Tables = dict[TableName, dict[Split, list[dict[str, Any]]]]


def prepare(config: DataConfig, output: Path, seed: int) -> dict[str, Any]:
    """Write `<table>/<split>.parquet` for every table with rows, and `summary.json`; return the summary with previews.

    Raises `ConfigError` where a source is not there or nothing is to be prepared, `DataError` for too many bad rows,
    duplicates and leaks that are not allowed, or when no row is left.
    """
    sources = list(_sources(config))
    if not sources and config.procedures is None:
        raise ConfigError("data: procedures is null and no table has a source; set one of them")
    placed = _generated(config, seed)
    reports: list[SourceRows] = []
    for place, table, source in sources:
        report = read_source(table, source, place, config.max_bad_fraction)
        placed += _placed(table, report, config)
        reports.append(report)
    unique, duplicates = without_duplicates(placed, config.allow_duplicates)
    clean, leaks = without_leaks(unique, config.allow_leaks)
    by_table = _by_table(clean)
    _write(by_table, output)
    summary = {
        "rows": {table: {split: len(rows) for split, rows in splits.items()} for table, splits in by_table.items()},
        "bad_rows": {"count": sum(r.n_bad for r in reports), "listed": [bad for r in reports for bad in r.bad]},
        "duplicates": {"count": len(duplicates), "listed": duplicates[:LISTED]},
        "leaks": {"count": len(leaks), "listed": leaks[:LISTED]},
        "warnings": _warnings(by_table, reports, duplicates, leaks),
    }
    (output / "summary.json").write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    # Previews stay out of the artifact: their number is operational, and must not change what is stored.
    return {**summary, "previews": {t: splits["train"][: config.preview_rows] for t, splits in by_table.items()}}


def fingerprint(config: DataConfig) -> list[dict[str, Any]]:
    """Name, size and sha256 of every local file the config names, by source; Hugging Face datasets are named only."""
    return [
        {"place": place, "files": file_fingerprint(source.path, f"{place}.path")}
        for place, _, source in _sources(config)
        if source.kind is SourceKind.file
    ]


def _sources(config: DataConfig) -> Iterator[tuple[str, TableName, TableSource]]:
    for table in TABLES:
        for i, source in enumerate(getattr(config, table)):
            yield f"data.{table}[{i}]", table, source


def _generated(config: DataConfig, seed: int) -> list[PlacedRow]:
    if config.procedures is None:
        return []
    generated = procedures_rows(config.procedures, seed)
    return [PlacedRow(table, split, row, SOURCE) for (table, split), rows in generated.items() for row in rows]


def _placed(table: TableName, report: SourceRows, config: DataConfig) -> Iterator[PlacedRow]:
    for source_row in report.rows:
        split = split_of(source_row.row["id"], config.validation_fraction, config.test_fraction)
        yield PlacedRow(table, split, source_row.row, source_row.where)


def _by_table(rows: list[PlacedRow]) -> _Tables:
    """Rows by table and split, in their original order; tables without rows are left out."""
    tables: _Tables = {}
    for table in TABLES:
        splits: dict[Split, list[dict[str, Any]]] = {
            split: [r.row for r in rows if r.table == table and r.split == split] for split in SPLITS
        }
        if any(splits.values()):
            tables[table] = splits
    return tables


def _write(tables: _Tables, output: Path) -> None:
    for name, splits in tables.items():
        for split, rows in splits.items():
            write_table(name, to_table(name, rows), output / name / f"{split}.parquet")
    if not tables:
        raise DataError("no table has a row; raise the row counts of data.procedures or add sources")


def _warnings(tables: _Tables, reports: list[SourceRows], duplicates: list[str], leaks: list[str]) -> list[str]:
    empty = [f"table '{name}' has no rows in its {split} split" for name, s in tables.items() for split in s if not s[split]]
    counts = Counter(bad_rows=sum(r.n_bad for r in reports), duplicates=len(duplicates), leaks=len(leaks))
    texts = {
        "bad_rows": "rows could not be used",
        "duplicates": "repeated rows were dropped",
        "leaks": "leaking rows were dropped",
    }
    return empty + [f"{count} {texts[name]}; see summary.json" for name, count in counts.items() if count]
