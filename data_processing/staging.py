"""Rows on their way into the Parquet files of a table, while it is not known yet which of them stay.

Rows go to disk as they come: some hundred of them as Python objects and some megabytes as Arrow are all that is in memory.
"""

from __future__ import annotations

import shutil
from array import array
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_processing.config import SPLITS, Split
from data_processing.keys import Hashes, RowKey, TableKeys
from data_processing.schemas import TableName, TableWriter, to_table
from data_processing.splits import Mask

_ARROW_ROWS = 128  # turned from Python objects into Arrow at a time
_ROW_GROUP_BYTES = 4 << 20  # of Arrow data, written at a time

Row = dict[str, Any]


@contextmanager
def staged(name: TableName, folder: Path) -> Iterator[StagedTable]:
    """A table to add rows to; when the context ends they are on disk, a file a split, and wait for `keep`."""
    with ExitStack() as stack:
        writers = [stack.enter_context(TableWriter(name, _staged_path(folder, split))) for split in SPLITS]
        pool = stack.enter_context(ThreadPoolExecutor(max_workers=1))  # ends before the files are closed
        buffers = {split: _Buffer(name, writer, pool) for split, writer in zip(SPLITS, writers, strict=True)}
        yield StagedTable(name, folder, buffers)
        for buffer in buffers.values():
            buffer.flush()


class StagedTable:
    """The rows of one table, all of them, and what must be remembered of them to say which stay."""

    def __init__(self, name: TableName, folder: Path, buffers: dict[Split, _Buffer]) -> None:
        self.keys = TableKeys()
        self._given = array("Q")
        self._name, self._folder, self._buffers = name, folder, buffers

    def add(self, row: Row, key: RowKey, split: Split, origin: str, number: int, *, stays: bool = False) -> None:
        """Append a row that came from `origin` and has this number there; one that `stays` keeps its split whatever others lack."""
        self.keys.add(key, split, origin, number)
        if stays:
            self._given.append(key[2])
        self._buffers[split].add(row)

    @property
    def given(self) -> Hashes:
        """The prompt keys of the rows that keep their split."""
        return np.asarray(self._given)

    def describe(self, index: int) -> str:
        """A row for messages: table, split, id and where it came from."""
        code = self.keys.staged[index]
        row_id = self._id(SPLITS[code], int(np.count_nonzero(self.keys.staged[:index] == code)))
        return f"{self._name}/{SPLITS[self.keys.splits[index]]} id {row_id} ({self.keys.where(index)})"

    def keep(self, stays: Mask, clashing: Mask) -> dict[Split, int]:
        """Give the files their names, with the rows that stay (bool[rows]) only; none where no row does. Rows a split.

        The ids of `clashing` rows (bool[rows]) are told apart by the hash of what the rows hold.
        """
        if not stays.any():
            shutil.rmtree(self._folder)
            return {}
        masks = {split: stays & (self.keys.splits == code) for code, split in enumerate(SPLITS)}
        for split, mask in masks.items():
            self._keep(split, mask, clashing)
        for split in SPLITS:
            _staged_path(self._folder, split).unlink(missing_ok=True)
        return {split: int(mask.sum()) for split, mask in masks.items()}

    def _keep(self, split: Split, stays: Mask, clashing: Mask) -> None:
        path = self._folder / f"{split}.parquet"
        if np.array_equal(stays, self.keys.staged == SPLITS.index(split)) and not (stays & clashing).any():
            _staged_path(self._folder, split).rename(path)
            return
        with TableWriter(self._name, path) as writer:
            for code in np.unique(self.keys.staged[stays]).tolist():
                rows = np.flatnonzero(self.keys.staged == code)
                for start, group in _row_groups(_staged_path(self._folder, SPLITS[code])):
                    own = rows[start : start + len(group)]
                    told_apart = _told_apart(group, clashing[own], self.keys.contents[own])
                    writer.write(told_apart.filter(pa.array(stays[own])))

    def _id(self, split: Split, index: int) -> str:
        groups = _row_groups(_staged_path(self._folder, split), ["id"])
        row_id: str = next(ids["id"][index - start].as_py() for start, ids in groups if index < start + len(ids))
        return row_id


class _Buffer:
    """Rows of one split that are not in its file yet. Files are written by `pool`, beside the reading of further rows."""

    def __init__(self, name: TableName, writer: TableWriter, pool: Executor) -> None:
        self._name, self._writer, self._pool = name, writer, pool
        self._rows: list[Row] = []
        self._tables: list[pa.Table] = []
        self._bytes = 0
        self._writing: Future[None] | None = None

    def add(self, row: Row) -> None:
        self._rows.append(row)
        if len(self._rows) == _ARROW_ROWS:
            self._convert()

    def flush(self) -> None:
        self._convert()
        self._write()
        self._wait()

    def _convert(self) -> None:
        self._tables.append(to_table(self._name, self._rows))
        self._bytes += self._tables[-1].nbytes
        self._rows = []
        if self._bytes >= _ROW_GROUP_BYTES:
            self._write()

    def _write(self) -> None:
        self._wait()  # for the row group before this one, so that at most one is waiting
        self._writing = self._pool.submit(self._writer.write, pa.concat_tables(self._tables))
        self._tables, self._bytes = [], 0

    def _wait(self) -> None:
        if self._writing is not None:
            self._writing.result()


def _staged_path(folder: Path, split: Split) -> Path:
    return folder / f"{split}.staged.parquet"


def _told_apart(group: pa.Table, clashing: Mask, contents: Hashes) -> pa.Table:
    if not clashing.any():
        return group
    named = zip(group["id"].to_pylist(), clashing.tolist(), contents.tolist(), strict=True)
    ids = [f"{row_id}-{content:016x}" if clashes else row_id for row_id, clashes, content in named]
    return group.set_column(group.schema.get_field_index("id"), group.schema.field("id"), pa.array(ids, pa.string()))


def _row_groups(path: Path, columns: list[str] | None = None) -> Iterator[tuple[int, pa.Table]]:
    """The row groups of a file, each with the index of its first row."""
    start = 0
    with pq.ParquetFile(path) as parquet:
        for number in range(parquet.num_row_groups):
            group = parquet.read_row_group(number, columns=columns)
            yield start, group
            start += len(group)
