"""Data files of all types as rows. Knows nothing about row shapes."""

from __future__ import annotations

import csv
import errno
import gzip
import io
import json
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from data_processing.errors import DataError
from data_processing.sources.found import compression_of, data_type_of
from data_processing.sources.turn import MEDIA

_BATCH_ROWS = 1024  # of columnar files turned into Python objects at a time
_BUFFER_BYTES = 1 << 20
_decoded = msgspec.json.Decoder().decode
# A damaged Arrow file may hold texts of impossible lengths, which Python itself refuses to make.
_UNREADABLE = (pa.ArrowException, OSError, EOFError, zlib.error, tarfile.TarError, csv.Error, UnicodeDecodeError, SystemError)


# What a disk or a network does, and the next try may not meet.
_OF_THE_MACHINE = frozenset(
    {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.EMFILE, errno.ENFILE}
)


class Position:
    """How far the reading of some files is, in bytes as they lie on the disk. Asked while they are being read."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.total = sum(file.stat().st_size for file in files)
        self._before = 0
        self.within: Callable[[], int] = lambda: 0  # bytes of the file that is open

    @property
    def read(self) -> int:
        """Bytes read so far."""
        return self._before + self.within()

    def end_file(self, file: Path) -> None:
        """A file was read to its end."""
        self._before += file.stat().st_size
        self.within = lambda: 0


class RawRow(NamedTuple):
    """One row as the source holds it; `values` is None where it cannot be read, and `problem` says why.

    `origin` and `number` say where it stands, for example "chat.jsonl line" and 7.
    """

    origin: str
    number: int
    values: dict[str, Any] | None
    problem: str = ""


def read_files(files: list[Path], position: Position | None = None) -> Iterator[RawRow]:
    """Rows of `files` in order, numbered from 1 in each; raises `DataError` for a file that is no such file at all.

    `position` is that of these files, and goes along.
    """
    position = position or Position(files)
    for file in files:
        with _read_to_its_end(file, position):
            yield from READERS[str(data_type_of(file))](file, position)


def read_whole_text(file: Path, position: Position) -> str:
    """The text of a file of UTF-8, decompressed, in one piece; raises as `read_files` does."""
    with _read_to_its_end(file, position), _open(file, position) as stream:
        return io.TextIOWrapper(stream, encoding="utf-8-sig").read()


@contextmanager
def _read_to_its_end(file: Path, position: Position) -> Iterator[None]:
    """A file is read while inside; raises `DataError` for one that is none of its type."""
    try:
        yield
        position.end_file(file)
    except _UNREADABLE as error:
        if getattr(error, "errno", None) in _OF_THE_MACHINE:
            raise
        raise DataError(f"{file}: not a readable {data_type_of(file)} file: {error}; write it again or remove it") from error


def _open(file: Path, position: Position) -> IO[bytes]:
    """The bytes of a file, decompressed."""
    compression = compression_of(file)
    if compression == "gzip":
        packed = gzip.GzipFile(file, "rb")
        position.within = cast(Any, packed).fileobj.tell
        return cast(IO[bytes], packed)
    if compression == "zstd":
        source = pa.OSFile(str(file))
        position.within = source.tell
        return io.BufferedReader(pa.CompressedInputStream(source, "zstd"), _BUFFER_BYTES)
    stream = file.open("rb", buffering=_BUFFER_BYTES)
    position.within = stream.tell
    return stream


def _read_parquet(file: Path, position: Position) -> Iterator[RawRow]:
    with pq.ParquetFile(file) as parquet:
        batches = _placed(parquet.iter_batches(_BATCH_ROWS), position, file.stat().st_size / max(parquet.metadata.num_rows, 1))
        yield from _numbered(file, batches)


def _placed(batches: Iterable[pa.RecordBatch], position: Position, bytes_a_row: float) -> Iterator[pa.RecordBatch]:
    """The batches of a columnar file, and how far they are in it by their rows."""
    rows = 0
    for batch in batches:
        rows += batch.num_rows
        position.within = partial(int, bytes_a_row * rows)
        yield batch


def _read_arrow(file: Path, position: Position) -> Iterator[RawRow]:
    """Both the file format and the stream format (which the datasets library writes)."""
    with pa.memory_map(str(file)) as source:
        is_file_format = source.read(6) == b"ARROW1"
        source.seek(0)
        if is_file_format:
            reader = pa.ipc.open_file(source)
            batches = _told(file, position, reader)
        else:
            position.within = source.tell
            batches = iter(pa.ipc.open_stream(source))
        slices = (batch.slice(start, _BATCH_ROWS) for batch in batches for start in range(0, batch.num_rows, _BATCH_ROWS))
        yield from _numbered(file, slices)


def _told(file: Path, position: Position, reader: Any) -> Iterator[pa.RecordBatch]:
    """The batches of an Arrow file, which are about as large as one another, and how far they are in it."""
    size, count = file.stat().st_size, reader.num_record_batches
    for i in range(count):
        position.within = partial(int, size * (i + 1) // count)
        yield reader.get_batch(i)


def _numbered(file: Path, batches: Iterator[pa.RecordBatch]) -> Iterator[RawRow]:
    rows = (row for batch in batches for row in batch.to_pylist())
    return (RawRow(f"{file.name} row", number, row) for number, row in enumerate(rows, 1))


def _read_json_lines(file: Path, position: Position) -> Iterator[RawRow]:
    with _open(file, position) as stream:
        yield from _json_lines(f"{file.name} line", stream)


def _json_lines(origin: str, lines: Iterable[bytes]) -> Iterator[RawRow]:
    for number, line in enumerate(lines, 1):
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


def _read_json(file: Path, position: Position) -> Iterator[RawRow]:
    """A list of objects, or an object with one list in it; a file of JSON lines under this ending is read as such."""
    try:
        with _open(file, position) as stream:
            content = json.loads(stream.read().decode("utf-8-sig"))
    except (json.JSONDecodeError, RecursionError) as error:
        if str(error).startswith("Extra data"):
            yield from _read_json_lines(file, position)
            return
        raise DataError(f"{file}: not valid JSON: {error}; correct the file") from error
    lists = [content] if isinstance(content, list) else [v for v in _values(content) if isinstance(v, list)]
    if len(lists) != 1:
        raise DataError(f"{file}: expected a list of objects, or an object with one such list; got {len(lists)} lists")
    for number, row in enumerate(lists[0], 1):
        yield _object_row(f"{file.name} row", number, row)


def _values(content: Any) -> list[Any]:
    return list(content.values()) if isinstance(content, dict) else []


def _read_csv(file: Path, position: Position) -> Iterator[RawRow]:
    csv.field_size_limit(sys.maxsize)
    origin = f"{file.name} row"
    with _open(file, position) as stream:
        reader = csv.DictReader(io.TextIOWrapper(stream, encoding="utf-8-sig", newline=""))
        names = list(reader.fieldnames or [])
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise DataError(f"{file}: the header names {twice!r} twice; rename or remove one of the columns")
        for number, row in enumerate(reader, 1):
            # DictReader keeps surplus cells under None and fills missing cells with None.
            if None in row or None in row.values():
                yield RawRow(origin, number, None, "has another number of cells than the header")
            else:
                yield RawRow(origin, number, dict(row))


def _read_text(file: Path, position: Position) -> Iterator[RawRow]:
    """A row a line, as the datasets library has it."""
    with _open(file, position) as stream:
        for number, line in enumerate(io.TextIOWrapper(stream, encoding="utf-8-sig"), 1):
            if not line.isspace():
                yield RawRow(f"{file.name} line", number, {"text": line.rstrip("\r\n")})


def _read_tar(file: Path, position: Position) -> Iterator[RawRow]:
    """A row a sample: members that follow one another with the same name up to its first dot, as WebDataset writes them.

    A .json member gives columns, a .txt member the column `text`; a .jsonl member gives rows of its own.
    """
    sample: tuple[str, dict[str, Any], str] | None = None  # name, columns, problem
    number = 0
    with _open(file, position) as stream, tarfile.open(fileobj=stream, mode="r|") as shard:
        for member in shard:
            folder, _, base = member.name.rpartition("/")
            stem, _, ending = base.partition(".")
            if not member.isfile() or not stem or folder.startswith("__MACOSX"):
                continue
            content = cast(IO[bytes], shard.extractfile(member))
            if ending in ("jsonl", "ndjson"):
                yield from _json_lines(f"{file.name} {member.name} line", content)
                continue
            name = f"{folder}/{stem}"
            if sample is not None and sample[0] != name:
                number += 1
                yield _sample_row(file, number, *sample[1:])
                sample = None
            _, values, problem = sample or (name, {}, "")
            sample = (name, values, problem or _take_member(values, ending, content.read()))
    if sample is not None:
        yield _sample_row(file, number + 1, *sample[1:])
    # A shard that ends between two members looks whole to tarfile; compressed ones have an end of their own.
    if compression_of(file) is None and any(_last_bytes(file, tarfile.BLOCKSIZE)):
        raise tarfile.ReadError("it ends without the mark of its end, so it was cut")


def _last_bytes(file: Path, count: int) -> bytes:
    with file.open("rb") as stream:
        stream.seek(-min(count, file.stat().st_size), io.SEEK_END)
        return stream.read()


def _sample_row(file: Path, number: int, values: dict[str, Any], problem: str) -> RawRow:
    return RawRow(f"{file.name} sample", number, None if problem else values, problem)


def _take_member(values: dict[str, Any], ending: str, content: bytes) -> str:
    """Put a member of a sample into its columns; what is wrong with it, if anything."""
    kind = ending.rpartition(".")[2].lower()
    try:
        if kind == "json":
            decoded = _json_value(content)
            if not isinstance(decoded, dict):
                return f"member .{ending} is a JSON {type(decoded).__name__}, expected an object"
            values.update(decoded)
        elif kind in ("txt", "text"):
            values["text"] = content.decode("utf-8-sig")
        elif kind in MEDIA:
            values[kind] = content
        elif kind == "cls" or kind.startswith("__"):
            values[kind] = content.decode()
        else:
            return f"has a member that ends in .{ending}, allowed: .json, .jsonl, .txt"
    except (ValueError, RecursionError) as error:
        return f"member .{ending} cannot be read: {error}"
    return ""


def _object_row(origin: str, number: int, value: Any) -> RawRow:
    if isinstance(value, dict):
        return RawRow(origin, number, value)
    return RawRow(origin, number, None, f"is a JSON {type(value).__name__}, expected an object")


READERS: dict[str, Callable[[Path, Position], Iterator[RawRow]]] = {
    "parquet": _read_parquet,
    "jsonl": _read_json_lines,
    "json": _read_json,
    "csv": _read_csv,
    "arrow": _read_arrow,
    "txt": _read_text,
    "tar": _read_tar,
}
