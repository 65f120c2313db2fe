"""The Arrow tables that travel between stages, and the only way to write and read them.

Every table is checked against its schema on write and on read. What a table means is in docs/architecture.md.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from data_processing.errors import DataError

TableName = Literal["sft", "preference", "unpaired", "stepwise", "prompts", "rollouts", "predictions", "scores", "baseline"]

MESSAGE = pa.struct([pa.field("role", pa.string(), nullable=False), pa.field("content", pa.string(), nullable=False)])
MESSAGES = pa.list_(pa.field("item", MESSAGE, nullable=False))
IDS = pa.list_(pa.field("item", pa.int32(), nullable=False))
# What turns hold beside role and content (data_processing/turns.py).
TURNS = pa.list_(
    pa.field("item", pa.struct([pa.field("side", pa.string()), pa.field("index", pa.int32()), pa.field("keys", pa.string())]))
)
BOOLS = pa.list_(pa.field("item", pa.bool_(), nullable=False))
# Half-open spans of response tokens, and what each has earned.
UNITS = pa.list_(
    pa.field(
        "item",
        pa.struct(
            [pa.field(n, t, nullable=False) for n, t in (("start", pa.int32()), ("end", pa.int32()), ("credit", pa.float64()))]
        ),
        nullable=False,
    )
)
FLOATS = pa.list_(pa.field("item", pa.float32(), nullable=False))

# Where a row comes from (a file's or a dataset's name), and the share of tries that got it right.
_ORIGIN = {"source": (pa.string(),), "pass_rate": (pa.float64(),)}


def _schema(**columns: pa.DataType | tuple[pa.DataType]) -> pa.Schema:
    """Columns are required; a one-element tuple marks an optional one."""
    return pa.schema(
        [
            pa.field(name, kind[0] if isinstance(kind, tuple) else kind, nullable=isinstance(kind, tuple))
            for name, kind in columns.items()
        ]
    )


SCHEMAS: dict[str, pa.Schema] = {
    "sft": _schema(id=pa.string(), messages=MESSAGES, turns=(TURNS,), tools=(pa.string(),), condition=(pa.string(),), **_ORIGIN),
    "preference": _schema(
        id=pa.string(),
        prompt=MESSAGES,
        chosen=MESSAGES,
        rejected=MESSAGES,
        margin=(pa.float64(),),
        detail=(pa.string(),),
        turns=(TURNS,),
        tools=(pa.string(),),
        **_ORIGIN,
    ),
    "unpaired": _schema(
        id=pa.string(), prompt=MESSAGES, response=MESSAGES, desirable=pa.bool_(), turns=(TURNS,), tools=(pa.string(),), **_ORIGIN
    ),
    "stepwise": _schema(
        id=pa.string(), prompt=MESSAGES, steps=MESSAGES, labels=BOOLS, turns=(TURNS,), tools=(pa.string(),), **_ORIGIN
    ),
    "prompts": _schema(
        id=pa.string(),
        prompt=MESSAGES,
        label=(pa.string(),),
        source=pa.string(),
        turns=(TURNS,),
        tools=(pa.string(),),
        extra=(pa.string(),),
    ),
    "rollouts": _schema(
        prompt_id=pa.string(),
        step=pa.int64(),
        sample=pa.int32(),
        weight_version=pa.int64(),
        prompt_ids=IDS,
        response_ids=IDS,
        logprobs=FLOATS,
        rewards=pa.map_(pa.string(), pa.float64()),
        reward=(pa.float64(),),
        length_tokens=pa.int32(),
        finish_reason=pa.string(),
        learnt=(BOOLS,),
        trajectory=(pa.string(),),
        units=(UNITS,),
    ),
    "predictions": _schema(
        id=pa.string(),
        prompt_id=pa.string(),
        source=(pa.string(),),
        model=pa.string(),
        decoding=pa.string(),
        prompt=MESSAGES,
        response=pa.string(),
        label=(pa.string(),),
        finish_reason=pa.string(),
        prompt_tokens=pa.int32(),
        response_tokens=pa.int32(),
    ),
    "scores": _schema(prediction_id=pa.string(), metric=pa.string(), value=pa.float64(), detail=(pa.string(),)),
    "baseline": _schema(
        id=pa.string(),
        split=pa.string(),
        record=pa.string(),
        n_tokens=pa.int32(),
        nll_sum=pa.float64(),
        mean_nll=pa.float64(),
        baseline_ppl=pa.float64(),
    ),
}


# Of any JSON value: no white space, keys in order, UTF-8; raises UnicodeEncodeError for text that is not valid Unicode.
canonical_json = msgspec.json.Encoder(order="sorted").encode


def hash64(text: bytes) -> int:
    """The first 64 bits of the sha256 of a text."""
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big")


def content_id(value: Any) -> str:
    """A 16-hex-digit id of any JSON value: the same content has the same id on every machine."""
    return f"{hash64(canonical_json(value)):016x}"


def to_table(name: TableName, rows: Iterable[dict[str, Any]]) -> pa.Table:
    """Rows as a table of schema `name`; raises `DataError` naming table and reason where they do not fit."""
    try:
        return pa.Table.from_pylist(list(rows), schema=SCHEMAS[name])
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise DataError(f"table '{name}': rows do not fit its schema: {error}") from error


class TableWriter:
    """Writes one Parquet file piece by piece; it appears under its name, durable, when all of it was written."""

    def __init__(self, name: TableName, path: Path) -> None:
        self._name, self._path = name, path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._part = path.with_name(path.name + ".part")
        self._sink = self._part.open("wb")
        self._writer = pq.ParquetWriter(self._sink, SCHEMAS[name])

    def write(self, table: pa.Table) -> None:
        """Validate and append rows; each call starts a row group."""
        validate_table(self._name, table, where=str(self._path))
        self._writer.write_table(table.select(SCHEMAS[self._name].names).cast(SCHEMAS[self._name]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._sink as sink:
            self._writer.close()
            sink.flush()
            os.fsync(sink.fileno())
        if error is None:
            self._part.rename(self._path)
        else:
            self._part.unlink()


def write_table(name: TableName, table: pa.Table, path: Path) -> None:
    """Validate and write one Parquet file, durable before it appears under its name."""
    with TableWriter(name, path) as writer:
        writer.write(table)


def read_table(name: TableName, path: Path) -> pa.Table:
    """Read and validate one Parquet file written by `write_table`."""
    if not path.is_file():
        raise DataError(f"table '{name}': no file at {path}; run the prepare_data stage or check the path")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"table '{name}': {path} is not a readable Parquet file: {error}") from error
    # Tables written before an optional column was thought of are as good as those without a value in it.
    for field in SCHEMAS[name]:
        if field.nullable and field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(len(table), field.type))
    validate_table(name, table, where=str(path))
    return table.select(SCHEMAS[name].names).cast(SCHEMAS[name])


def validate_table(name: TableName, table: pa.Table, where: str) -> None:
    """Raise `DataError` unless `table` has exactly the columns of schema `name`, with no null in a required one."""
    schema = SCHEMAS[name]
    missing = [f.name for f in schema if f.name not in table.column_names]
    unknown = [c for c in table.column_names if c not in schema.names]
    if missing or unknown:
        raise DataError(
            f"{where}: table '{name}' lacks columns {missing} and has unknown columns {unknown}; expected {schema.names}"
        )
    for field in schema:
        column = table.column(field.name)
        if not field.nullable and column.null_count:
            row = column.is_null().to_pylist().index(True)
            raise DataError(f"{where}: table '{name}', row {row}: column '{field.name}' is null but required")
        try:
            column.cast(field.type)
        except pa.ArrowException as error:
            raise DataError(
                f"{where}: table '{name}', column '{field.name}': {column.type} is not {field.type}: {error}"
            ) from error
