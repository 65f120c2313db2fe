"""Sources and the built-in task → the tables of a `data` artifact."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from data_processing.config import LOCAL, SPLITS, DataConfig, Split, TableSource
from data_processing.errors import ConfigError, DataError
from data_processing.keys import Hashes, TableKeys, prompt_key, prompt_of, row_key
from data_processing.pace import Pace
from data_processing.procedures.rows import SOURCE, procedures_rows
from data_processing.schemas import TableName
from data_processing.sources.found import file_fingerprint
from data_processing.sources.rows import SourceRow, SourceRows
from data_processing.splits import Dropped, check_dropped, clashing, contradictions, duplicates, fill_splits, leaks, split_of
from data_processing.staging import StagedTable, staged

TABLES: tuple[TableName, ...] = ("sft", "preference", "prompts", "unpaired", "stepwise")

REPEATS = "repeat the content of another row of it"
OPPOSED = "contradict another row of it (the same answers the other way round)"
LEAKS = "have the prompt of a row in a split held out further"
_KEYS = ("duplicates", "contradictions", "leaks")
_TOLD = ("repeat others", "contradict one another", "leak into other splits")

Row = dict[str, Any]
Generated = dict[tuple[TableName, Split], list[Row]]
Filled = list[tuple[TableName, Split]]
Counts = dict[TableName, dict[Split, int]]
Tell = Callable[[int, int, str], None]  # how many of how many are done, and a line for people

_LOOKED_EVERY_ROWS = 256


def prepare(config: DataConfig, output: Path, seed: int, tell: Tell = lambda done, total, line: None) -> dict[str, Any]:
    """Write `<table>/<split>.parquet` for every table with rows, and `summary.json`; return the summary with previews.

    Sources are read once, row by row; `tell` hears now and then how far that is. Raises `ConfigError` where a source is not there or nothing is to be prepared,
    `DataError` for too many bad rows, duplicates, contradictions or leaks, or when no row is left.
    """
    sources = [SourceRows(table, source, place, config.max_bad_fraction) for place, table, source in sources_of(config)]
    if not sources and config.procedures is None:
        raise ConfigError("data: procedures is null and no table has a source; set one of them")
    generated = {} if config.procedures is None else procedures_rows(config.procedures, seed)
    tables = _staged(config, generated, sources, output, tell)
    tell(100, 100, "comparing rows, and writing those that stay")
    keys = {name: table.keys for name, table in tables.items()}
    filled = fill_splits(
        keys,
        np.concatenate([_prompts(generated), *(table.given for table in tables.values())]),
        config.validation_fraction,
        config.test_fraction,
    )
    dropped = _dropped(tables, keys)
    check_dropped(dropped, config.max_duplicate_fraction)
    stays = {name: ~np.logical_or.reduce([its.rows[name] for its in dropped.values()]) for name in tables}
    clashes = {name: clashing(keys[name].ids, stays[name]) for name in tables}
    counts = {name: rows for name, table in tables.items() if (rows := table.keep(stays[name], clashes[name]))}
    summary = _summary(counts, generated, sources, dropped)
    n_clashing = sum(int(mask.sum()) for mask in clashes.values())
    summary["warnings"] = [*_warnings(summary, filled, n_clashing), *(line for rows in sources for line in rows.notes)]
    (output / "summary.json").write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    # Previews stay out of the artifact: their number is operational, and must not change what is stored.
    return {**summary, "previews": {name: _first_rows(output, name, config.preview_rows) for name in summary["rows"]}}


def fingerprint(config: DataConfig) -> list[dict[str, Any]]:
    """Name, size and sha256 of every local file the config names, by source. Hugging Face datasets are told by their commit."""
    return [
        {"place": place, "files": file_fingerprint(source, f"{place}.path")}
        for place, _, source in sources_of(config)
        if source.kind in LOCAL
    ]


def sources_of(config: DataConfig) -> Iterator[tuple[str, TableName, TableSource]]:
    """Each source that the config names, with its place there and the table it is for."""
    for table in TABLES:
        for i, source in enumerate(getattr(config, table)):
            yield f"data.{table}[{i}]", table, source


def _staged(
    config: DataConfig, generated: Generated, sources: list[SourceRows], output: Path, tell: Tell
) -> dict[TableName, StagedTable]:
    """All rows of all tables that have some, the built-in task's before those of the sources."""
    tables: dict[TableName, StagedTable] = {}
    for name in TABLES:
        with staged(name, output / name) as tables[name]:
            for split in SPLITS:
                for number, row in enumerate(generated.get((name, split), []), 1):
                    tables[name].add(row, row_key(row), split, f"{SOURCE} {split} row", number)
            for rows in (rows for rows in sources if rows.table == name):
                for row, key, raw in _told(rows, sources.index(rows), len(sources), tell):
                    _, _, prompt, _ = key
                    split = rows.into or split_of(prompt, config.validation_fraction, config.test_fraction)
                    tables[name].add(row, key, split, raw.origin, raw.number, stays=rows.into is not None)
    return tables


def _told(rows: SourceRows, number: int, n_sources: int, tell: Tell) -> Iterator[SourceRow]:
    """The rows of source `number` (from 0); once a second it is told how many there were, and how long the others still take."""
    pace = Pace()
    for row in rows:
        if rows.n_read % _LOOKED_EVERY_ROWS == 0 and pace.is_due():
            share = rows.read_share
            line = f"{rows.place}: {rows.n_read:,} rows read" + (f" ({share:.0%} of it{pace.left(share, 1.0)})" if share else "")
            tell(round(100 * (number + share) / n_sources), 100, line)
        yield row


def _prompts(generated: Generated) -> Hashes:
    return np.array([prompt_key(prompt_of(row)) for rows in generated.values() for row in rows], np.uint64)


def _dropped(tables: dict[TableName, StagedTable], keys: dict[TableName, TableKeys]) -> dict[str, Dropped]:
    """The rows that go, by the reason why; each for one reason only."""

    def describe(name: TableName, row: int) -> str:
        return tables[name].describe(row)

    repeats = duplicates(keys, describe)
    opposed = contradictions(keys, repeats.rows, describe)
    leaking = leaks(keys, {name: repeats.rows[name] | opposed.rows[name] for name in keys}, describe)
    return {REPEATS: repeats, OPPOSED: opposed, LEAKS: leaking}


def _summary(counts: Counts, generated: Generated, sources: list[SourceRows], dropped: dict[str, Dropped]) -> dict[str, Any]:
    """Rows by table: what was read and what is used; and what became of the difference."""
    if not counts:
        raise _nothing_left(sources, dropped)
    made = {name: sum(len(rows) for (table, _), rows in generated.items() if table == name) for name in TABLES}
    read = {name: made[name] + sum(rows.n_read for rows in sources if rows.table == name) for name in TABLES}
    return {
        "read": {name: count for name, count in read.items() if count},
        "rows": counts,
        "bad_rows": {"count": sum(rows.n_bad for rows in sources), "listed": [bad for rows in sources for bad in rows.bad]},
        **{key: {"count": its.count, "listed": its.lines} for key, its in zip(_KEYS, dropped.values(), strict=True)},
    }


def _nothing_left(sources: list[SourceRows], dropped: dict[str, Dropped]) -> DataError:
    """The error for tables without rows: why those that were read cannot be used, if any were."""
    reasons = [rows.why_none() for rows in sources if rows.n_bad]
    reasons += [f"{its.count} rows {key}: {its.lines[0]}" for key, its in zip(_TOLD, dropped.values(), strict=True) if its.count]
    if not reasons:
        return DataError("no table has a row: raise the row counts of data.procedures or add sources")
    return DataError(
        "no table has a row: correct these rows, or rename their columns with the source's 'columns': " + "\n".join(reasons)
    )


def _warnings(summary: dict[str, Any], filled: Filled, n_clashing: int) -> Iterator[str]:
    counts: Counts = summary["rows"]
    for table, split in filled:
        yield f"table '{table}' had no row for its {split} split: the prompt nearest to it was put there"
    yield from (f"table '{name}' has no rows in its {split} split" for name, s in counts.items() for split in s if not s[split])
    told = {
        "rows could not be used; see summary.json": summary["bad_rows"]["count"],
        "repeated rows were dropped; see summary.json": summary["duplicates"]["count"],
        "rows that contradict one another were dropped; see summary.json": summary["contradictions"]["count"],
        "leaking rows were dropped; see summary.json": summary["leaks"]["count"],
        "rows have the id of another row of their table: the hash of their content was added to it": n_clashing,
    }
    yield from (f"{count} {what}" for what, count in told.items() if count)


def _first_rows(output: Path, name: TableName, count: int) -> list[dict[str, Any]]:
    with pq.ParquetFile(output / name / "train.parquet") as parquet:
        return [row for batch in islice(parquet.iter_batches(max(count, 1)), 1) for row in batch.to_pylist()][:count]
