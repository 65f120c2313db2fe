"""Which local files a source names, what they hold, and their fingerprint. Knows nothing about row shapes."""

from __future__ import annotations

import csv
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_processing.errors import ConfigError, DataError


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as the source holds it; `values` is None where it cannot be read, and `problem` says why."""

    where: str
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
        yield from _numbered(file, (row for batch in parquet.iter_batches() for row in batch.to_pylist()))


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
        yield from _numbered(file, (row for batch in batches for row in batch.to_pylist()))


def _read_json_lines(file: Path) -> Iterator[RawRow]:
    with file.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            where = f"{file.name} line {number}"
            if not line.strip():
                continue
            try:
                yield _object_row(where, json.loads(line.decode("utf-8-sig")))
            except (ValueError, RecursionError) as error:
                yield RawRow(where, None, f"not valid JSON: {error}")


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
        yield _object_row(f"{file.name} row {number}", row)


def _values(content: Any) -> list[Any]:
    return list(content.values()) if isinstance(content, dict) else []


def _read_csv(file: Path) -> Iterator[RawRow]:
    csv.field_size_limit(sys.maxsize)
    with file.open(encoding="utf-8-sig", newline="") as stream:
        for number, row in enumerate(csv.DictReader(stream), 1):
            where = f"{file.name} row {number}"
            # DictReader keeps surplus cells under None and fills missing cells with None.
            if None in row or None in row.values():
                yield RawRow(where, None, "has another number of cells than the header")
            else:
                yield RawRow(where, dict(row))


def _numbered(file: Path, rows: Iterator[dict[str, Any]]) -> Iterator[RawRow]:
    for number, row in enumerate(rows, 1):
        yield RawRow(f"{file.name} row {number}", row)


def _object_row(where: str, value: Any) -> RawRow:
    if isinstance(value, dict):
        return RawRow(where, value)
    return RawRow(where, None, f"is a JSON {type(value).__name__}, expected an object")


READERS: dict[str, Callable[[Path], Iterator[RawRow]]] = {
    "parquet": _read_parquet,
    "jsonl": _read_json_lines,
    "json": _read_json,
    "csv": _read_csv,
    "arrow": _read_arrow,
}
