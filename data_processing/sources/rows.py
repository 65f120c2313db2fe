"""Sources as rows of one table, with the rows that could not be used."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from data_processing.config import SourceKind, TableSource
from data_processing.errors import DataError
from data_processing.schemas import TableName, content_id
from data_processing.sources.files import RawRow, read_files, source_files
from data_processing.sources.hub import read_hub
from data_processing.sources.messages import BadRow
from data_processing.sources.recognise import Record, recognise

LISTED_BAD_ROWS = 20

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class SourceRow:
    """A row of a table and the place it came from, for messages."""

    row: Row
    where: str


@dataclass(slots=True)
class SourceRows:
    """What one source gave: rows, how many it had, and number and reason of the first bad ones."""

    rows: list[SourceRow] = field(default_factory=list)
    n_read: int = 0
    n_bad: int = 0
    bad: list[dict[str, str]] = field(default_factory=list)


def read_source(table: TableName, source: TableSource, place: str, max_bad_fraction: float) -> SourceRows:
    """Rows of `source` for `table`; `place` is the source's place in the config, for messages.

    Raises `ConfigError` where the source is not there, `DataError` where it is empty or has too many bad rows.
    """
    result = SourceRows()
    for raw in islice(_raw_rows(source, place), source.max_rows):
        result.n_read += 1
        try:
            result.rows.append(SourceRow(_table_row(table, raw, source), raw.where))
        except BadRow as error:
            result.n_bad += 1
            if len(result.bad) < LISTED_BAD_ROWS:
                result.bad.append({"table": table, "source": source.path, "row": raw.where, "reason": str(error)})
    _check_bad(result, source, place, max_bad_fraction)
    return result


def _raw_rows(source: TableSource, place: str) -> Iterator[RawRow]:
    if source.kind is SourceKind.huggingface:
        return read_hub(source, f"{place}.path")
    return read_files(source_files(source.path, f"{place}.path"))


def _check_bad(result: SourceRows, source: TableSource, place: str, max_bad_fraction: float) -> None:
    if not result.n_read:
        raise DataError(f"{place}: source '{source.path}' has no rows; check the file, or remove the source")
    if result.n_bad > max_bad_fraction * result.n_read:
        listed = "".join(f"\n  {bad['row']}: {bad['reason']}" for bad in result.bad)
        raise DataError(
            f"{place}: {result.n_bad} of {result.n_read} rows of '{source.path}' cannot be used, more than "
            f"data.max_bad_fraction={max_bad_fraction}; correct them or raise the limit. The first of them:{listed}"
        )


def _table_row(table: TableName, raw: RawRow, source: TableSource) -> Row:
    if raw.values is None:
        raise BadRow(raw.problem)
    values = {source.columns.get(name, name): value for name, value in raw.values.items()}
    row = ROW_BUILDERS[table](recognise(values), values)
    given = _given_id(values)
    try:
        content = content_id([given, *row.values()])
    except UnicodeEncodeError as error:
        raise BadRow(f"holds text that is not valid Unicode: {error}") from error
    row["id"] = given or content
    if table == "prompts":
        row["source"] = source.path if source.kind is SourceKind.huggingface else Path(source.path).name
    return row


def _given_id(values: Row) -> str | None:
    value = values.get("id")
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise BadRow(f"'id' is a {type(value).__name__}, expected text or a whole number")
    return str(value)


def _sft_row(record: Record, values: Row) -> Row:
    return {"messages": [*record.prompt, *_response(record)]}


def _preference_row(record: Record, values: Row) -> Row:
    if record.rejected is None:
        raise BadRow("has no rejected answer (columns chosen + rejected, or question + response_j + response_k)")
    row = {"prompt": record.prompt, "chosen": _response(record), "rejected": record.rejected}
    return {**row, "margin": _margin(values.get("margin")), "detail": None}


def _prompts_row(record: Record, values: Row) -> Row:
    return {"prompt": record.prompt, "label": _label(values.get("label"))}


def _unpaired_row(record: Record, values: Row) -> Row:
    return {"prompt": record.prompt, "response": _response(record), "desirable": _flag(values.get("desirable"))}


def _response(record: Record) -> list[dict[str, str]]:
    if record.response is None:
        raise BadRow("has no answer: it ends with a prompt")
    return record.response


def _margin(value: Any) -> float | None:
    if value is None or value == "":
        return None
    try:
        margin = float(value)
    except (TypeError, ValueError):
        margin = math.nan
    if not math.isfinite(margin):
        raise BadRow(f"'margin' is {value!r}, expected a finite number")
    return margin


def _label(value: Any) -> str | None:
    """What a verifier needs: text as it is, anything else as JSON."""
    if value is None or isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise BadRow(f"'label' cannot be written as JSON: {error}") from error


def _flag(value: Any) -> bool:
    flags = {"true": True, "1": True, "false": False, "0": False}
    flag = flags.get(str(value).strip().lower())
    if flag is None:
        raise BadRow(f"'desirable' is {value!r}, expected true or false")
    return flag


ROW_BUILDERS: dict[str, Callable[[Record, Row], Row]] = {
    "sft": _sft_row,
    "preference": _preference_row,
    "prompts": _prompts_row,
    "unpaired": _unpaired_row,
}
