"""Which local files a source names, what they hold, and their fingerprint. Knows nothing about row shapes."""

from __future__ import annotations

import csv
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from data_processing.errors import ConfigError, DataError

_BATCH_ROWS = 1024  # of columnar files turned into Python objects at a time
_BUFFER_BYTES = 1 << 20
_decoded = msgspec.json.Decoder().decode


class RawRow(NamedTuple):
    """One row as the source holds it; `values` is None where it cannot be read, and `problem` says why.

    `origin` and `number` say where it stands, for example "chat.jsonl line" and 7.
    """

    origin: str
    number: int
    values: dict[str, Any] | None
    problem: str = ""


def source_files(path: str, field: str) -> list[Path]:
    """The files that `path` (file, folder or data_type@dir) names, sorted; raises `ConfigError` naming `field`."""
    data_type, at, folder = path.partition("@")
    if at and not Path(path).exists():
        if data_type not in READERS:
            raise ConfigError(f"{field}: unknown data type '{data_type}' in '{path}'; allowed: {', '.join(READERS)}")
        return _files_below(Path(folder), {data_type}, field)
    if Path(path).is_dir():
        return _files_below(Path(path), set(READERS), field)
    if not Path(path).is_file():
        raise ConfigError(
            f"{field}: no file or folder at '{path}'; give a path that exists, or set the source's kind to 'huggingface'"
        )
    if data_type_of(Path(path)) not in READERS:
        raise ConfigError(f"{field}: '{path}' ends in none of {', '.join('.' + name for name in READERS)}; convert it")
    return [Path(path)]


def _files_below(folder: Path, types: set[str], field: str) -> list[Path]:
    if not folder.is_dir():
        raise ConfigError(f"{field}: no folder at '{folder}'; give one that exists")
    files = sorted(f for f in folder.rglob("*") if f.is_file() and data_type_of(f) in types)
    found = sorted({data_type_of(f) for f in files})
    if not files:
        raise ConfigError(f"{field}: no file of type {', '.join(sorted(types))} below '{folder}'; check the folder")
    if len(found) > 1:
        raise ConfigError(
            f"{field}: '{folder}' holds files of several types ({', '.join(found)}); name one, for example {found[0]}@{folder}"
        )
    return files


def data_type_of(file: Path) -> str:
    """The type of a file by its ending, for example "jsonl"."""
    return file.suffix.lower().removeprefix(".")


def file_fingerprint(path: str, field: str) -> list[dict[str, Any]]:
    """Name, size in bytes and sha256 of every file that `path` names."""
    return [{"name": f.name, "bytes": f.stat().st_size, "sha256": _sha256(f)} for f in source_files(path, field)]


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_files(files: list[Path]) -> Iterator[RawRow]:
    """Rows of `files` in order, numbered from 1 in each; raises `DataError` for a file that is no such file at all."""
    for file in files:
        try:
            yield from READERS[data_type_of(file)](file)
        except (pa.ArrowException, OSError, csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{file}: not a readable {data_type_of(file)} file: {error}; write it again or remove it") from error


def _read_parquet(file: Path) -> Iterator[RawRow]:
    with pq.ParquetFile(file) as parquet:
        yield from _numbered(file, parquet.iter_batches(_BATCH_ROWS))


def _read_arrow(file: Path) -> Iterator[RawRow]:
    """Both the file format and the stream format (which the datasets library writes)."""
    with pa.memory_map(str(file)) as source:
        is_file_format = source.read(6) == b"ARROW1"
        source.seek(0)
        if is_file_format:
            reader = pa.ipc.open_file(source)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
        else:
            batches = iter(pa.ipc.open_stream(source))
        slices = (batch.slice(start, _BATCH_ROWS) for batch in batches for start in range(0, batch.num_rows, _BATCH_ROWS))
        yield from _numbered(file, slices)


def _numbered(file: Path, batches: Iterator[pa.RecordBatch]) -> Iterator[RawRow]:
    rows = (row for batch in batches for row in batch.to_pylist())
    return (RawRow(f"{file.name} row", number, row) for number, row in enumerate(rows, 1))


def _read_json_lines(file: Path) -> Iterator[RawRow]:
    origin = f"{file.name} line"
    with file.open("rb", buffering=_BUFFER_BYTES) as stream:
        for number, line in enumerate(stream, 1):
            if line.isspace():
                continue
            try:
                yield _object_row(origin, number, _json_value(line))
            except (ValueError, RecursionError) as error:
                yield RawRow(origin, number, None, f"not valid JSON: {error}")


def _json_value(line: bytes) -> Any:
    """What `json.loads` makes of the line; msgspec gives the same faster, or refuses (byte order marks, NaN, lone surrogates)."""
    try:
        return _decoded(line)
    except (ValueError, RecursionError):
        return json.loads(line.decode("utf-8-sig"))


def _read_json(file: Path) -> Iterator[RawRow]:
    """A list of objects, or an object with one list in it; a file of JSON lines under this ending is read as such."""
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, RecursionError) as error:
        if str(error).startswith("Extra data"):
            yield from _read_json_lines(file)
            return
        raise DataError(f"{file}: not valid JSON: {error}; correct the file") from error
    lists = [content] if isinstance(content, list) else [v for v in _values(content) if isinstance(v, list)]
    if len(lists) != 1:
        raise DataError(f"{file}: expected a list of objects, or an object with one such list; got {len(lists)} lists")
    for number, row in enumerate(lists[0], 1):
        yield _object_row(f"{file.name} row", number, row)


def _values(content: Any) -> list[Any]:
    return list(content.values()) if isinstance(content, dict) else []


def _read_csv(file: Path) -> Iterator[RawRow]:
    csv.field_size_limit(sys.maxsize)
    origin = f"{file.name} row"
    with file.open(encoding="utf-8-sig", newline="") as stream:
        for number, row in enumerate(csv.DictReader(stream), 1):
            # DictReader keeps surplus cells under None and fills missing cells with None.
            if None in row or None in row.values():
                yield RawRow(origin, number, None, "has another number of cells than the header")
            else:
                yield RawRow(origin, number, dict(row))


def _object_row(origin: str, number: int, value: Any) -> RawRow:
    if isinstance(value, dict):
        return RawRow(origin, number, value)
    return RawRow(origin, number, None, f"is a JSON {type(value).__name__}, expected an object")


READERS: dict[str, Callable[[Path], Iterator[RawRow]]] = {
    "parquet": _read_parquet,
    "jsonl": _read_json_lines,
    "json": _read_json,
    "csv": _read_csv,
    "arrow": _read_arrow,
}
