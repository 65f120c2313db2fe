"""Sources as rows of one table, with the rows that could not be used."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from data_processing.config import SourceKind, TableSource
from data_processing.errors import DataError
from data_processing.keys import RowKey, content_key, id_key, prompt_key
from data_processing.schemas import TableName
from data_processing.sources.files import RawRow, read_files, source_files
from data_processing.sources.hub import read_hub
from data_processing.sources.messages import BadRow
from data_processing.sources.recognise import recognise
from data_processing.sources.record import Record, check

LISTED_BAD_ROWS = 20
LISTED_COLUMNS = 10

Row = dict[str, Any]
SourceRow = tuple[Row, RowKey, RawRow]  # a row of a table, its key, and what it was in the source


class SourceRows:
    """The rows of one source for one table, read as they are iterated over: once.

    Meanwhile it counts the rows, lists number and reason of the first bad ones, and gathers the columns that rows have and that
    were not used. `place` is the source's place in the config, for messages. Iterating raises `ConfigError` where the source is
    not there, and at the end `DataError` where it was empty or had too many bad rows.
    """

    def __init__(self, table: TableName, source: TableSource, place: str, max_bad_fraction: float) -> None:
        self.table = table
        self.n_read = 0
        self.n_bad = 0
        self.bad: list[dict[str, str]] = []
        self._unused: set[str] = set()
        self._source, self._place, self._max_bad_fraction = source, place, max_bad_fraction

    def __iter__(self) -> Iterator[SourceRow]:
        for raw in islice(_raw_rows(self._source, self._place), self._source.max_rows):
            self.n_read += 1
            try:
                row, key = self._row(raw)
            except BadRow as error:
                self._note(raw, error)
            else:
                yield row, key, raw
        self._check()

    @property
    def unused(self) -> list[str]:
        """A line on the columns that were not used, if there are any."""
        names = sorted(self._unused)
        shown = ", ".join(repr(name) for name in names[:LISTED_COLUMNS]) + (", ..." if len(names) > LISTED_COLUMNS else "")
        return [f"{self._place}: columns that were not used: {shown}"] if names else []

    def _row(self, raw: RawRow) -> tuple[Row, RowKey]:
        if raw.values is None:
            raise BadRow(raw.problem)
        values = raw.values
        if self._source.columns:
            values = {self._source.columns.get(name, name): value for name, value in values.items()}
        record, shape = recognise(values, self.table)
        check(record, self.table)
        self._unused |= {name for name in values.keys() - shape.uses - OWN_COLUMNS[self.table] if values[name] is not None}
        return self._with_key(ROW_BUILDERS[self.table](record, values), record, _given_id(values))

    def _with_key(self, row: Row, record: Record, given_id: str | None) -> tuple[Row, RowKey]:
        try:
            content = content_key(row)
            row["id"] = given_id or f"{content:016x}"
            key = id_key(row["id"]), content, prompt_key(record.prompt)
        except UnicodeEncodeError as error:
            raise BadRow(f"holds text that is not valid Unicode: {error}") from error
        if self.table == "prompts":
            path = self._source.path
            row["source"] = path if self._source.kind is SourceKind.huggingface else Path(path).name
        return row, key

    def _note(self, raw: RawRow, error: BadRow) -> None:
        self.n_bad += 1
        if len(self.bad) < LISTED_BAD_ROWS:
            where = f"{raw.origin} {raw.number}"
            self.bad.append({"table": self.table, "source": self._source.path, "row": where, "reason": str(error)})

    def _check(self) -> None:
        if not self.n_read:
            raise DataError(f"{self._place}: source '{self._source.path}' has no rows; check the file, or remove the source")
        if self.n_bad > self._max_bad_fraction * self.n_read:
            listed = "".join(f"\n  {bad['row']}: {bad['reason']}" for bad in self.bad)
            raise DataError(
                f"{self._place}: {self.n_bad} of {self.n_read} rows of '{self._source.path}' cannot be used, more than "
                f"data.max_bad_fraction={self._max_bad_fraction}; correct them or raise the limit. The first of them:{listed}"
            )


def _raw_rows(source: TableSource, place: str) -> Iterator[RawRow]:
    if source.kind is SourceKind.huggingface:
        return read_hub(source, f"{place}.path")
    return read_files(source_files(source.path, f"{place}.path"))


def _given_id(values: Row) -> str | None:
    value = values.get("id")
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise BadRow(f"'id' is a {type(value).__name__}, expected text or a whole number")
    return str(value)


def _sft_row(record: Record, values: Row) -> Row:
    return {"messages": [*record.prompt, *(record.response or [])]}


def _preference_row(record: Record, values: Row) -> Row:
    row = {"prompt": record.prompt, "chosen": record.response, "rejected": record.rejected}
    return {**row, "margin": _margin(values.get("margin")), "detail": None}


def _prompts_row(record: Record, values: Row) -> Row:
    return {"prompt": record.prompt, "label": _label(values.get("label"))}


def _unpaired_row(record: Record, values: Row) -> Row:
    return {"prompt": record.prompt, "response": record.response, "desirable": _flag(values.get("desirable"))}


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


# Columns that a table takes from a row of any shape.
OWN_COLUMNS: dict[str, frozenset[str]] = {
    "sft": frozenset({"id"}),
    "preference": frozenset({"id", "margin"}),
    "prompts": frozenset({"id", "label"}),
    "unpaired": frozenset({"id", "desirable"}),
}

ROW_BUILDERS: dict[str, Callable[[Record, Row], Row]] = {
    "sft": _sft_row,
    "preference": _preference_row,
    "prompts": _prompts_row,
    "unpaired": _unpaired_row,
}
