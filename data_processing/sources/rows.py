"""Sources as rows of one table, with the rows that could not be used."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from data_processing.config import LOCAL, SourceKind, Split, TableSource
from data_processing.errors import DataError
from data_processing.keys import RowKey, source_row_key
from data_processing.schemas import TableName
from data_processing.sources.columns import OWN_COLUMNS, ROW_BUILDERS, extra_columns, json_text, pass_rate, renamed, row_tools
from data_processing.sources.files import Position, RawRow, read_files
from data_processing.sources.found import found_files
from data_processing.sources.from_verifiers import read_environment
from data_processing.sources.generated import read_generated
from data_processing.sources.hub import read_hub
from data_processing.sources.messages import unknown_keys
from data_processing.sources.recognise import BEFORE, WORSE, Shape, recognise
from data_processing.sources.record import Record, check
from data_processing.sources.stories import read_stories
from data_processing.sources.turn import BadRow, refuse_media
from data_processing.turns import ASKED, TEXT_ROLE, pack_turns, with_text_behind

LISTED_BAD_ROWS = 20
LISTED_COLUMNS = 10

Row = dict[str, Any]
SourceRow = tuple[Row, RowKey, RawRow]  # a row of a table, its key, and what it was in the source


class SourceRows:
    """The rows of one source for one table, read as they are iterated over: once.

    Meanwhile it counts the rows, lists number and reason of the first bad ones, and gathers the columns and the keys of messages
    that rows have and that were not used. `place` is the source's place in the config, for messages. Iterating raises
    `ConfigError` where the source is not there, and at the end `DataError` where it was empty or had too many bad rows.
    """

    def __init__(self, table: TableName, source: TableSource, place: str, max_bad_fraction: float) -> None:
        self.table = table
        self.n_read = 0
        self.n_bad = 0
        self.bad: list[dict[str, str]] = []
        self._position = Position([])
        self._unused: set[str] = set()
        self._passed_over: list[str] = []
        self._left_out: Counter[str] = Counter()
        self._source, self.place, self._max_bad_fraction = source, place, max_bad_fraction

    def __iter__(self) -> Iterator[SourceRow]:
        for raw in islice(self._raw_rows(), self._source.max_rows):
            self.n_read += 1
            try:
                row, key = self._row(raw)
            except BadRow as error:
                self._note(raw, str(error))
            except MemoryError:
                raise
            except Exception as error:  # a row that nobody thought of is refused as any other is
                self._note(raw, f"could not be read as a row: {type(error).__name__}: {error}")
            else:
                yield row, key, raw
        self._check()

    @property
    def notes(self) -> list[str]:
        """A line on the columns that were not used, and one on the files that are no data, if there are any."""
        told = {"columns that were not used": sorted(self._unused), "passed over": self._passed_over}
        lines = [f"{self.place}: {what}: {_listed(names)}" for what, names in told.items() if names]
        return lines + [f"{self.place}: {line}" for line in self._what_was_left_out]

    @property
    def _what_was_left_out(self) -> list[str]:
        return [f"{count} chapters were left out: {why}" for why, count in self._left_out.items()]

    @property
    def into(self) -> Split | None:
        """The split of all its rows, where the source says one."""
        return self._source.into

    @property
    def read_share(self) -> float:
        """How much of its files has been read, from 0 to 1; 0 where there are none, as of a hub. While it is iterated over."""
        return self._position.read / self._position.total if self._position.total else 0.0

    def why_none(self) -> str:
        """What was read and why none of it could be used, for messages."""
        listed = "".join(f"\n  {bad['row']}: {bad['reason']}" for bad in self.bad)
        return f"{self.n_bad} of {self.n_read} rows of '{self._source.path}' cannot be used{listed}"

    def _row(self, raw: RawRow) -> tuple[Row, RowKey]:
        if raw.values is None:
            raise BadRow(raw.problem)
        # Chapters are read by the names that their columns are given.
        is_renamed = self._source.kind is SourceKind.stories
        values = raw.values if is_renamed else renamed(raw.values, self._source.columns)
        refuse_media(values, "column ")
        record, shape = recognise(values, self.table)
        check(record, self.table)
        row = ROW_BUILDERS[self.table](record, values)
        if tools := row_tools(values):
            if record.prompt[0]["role"] == TEXT_ROLE:
                raise BadRow("has tools beside a 'text', which is no conversation")
            row["tools"] = json_text(tools, "tools")
        if self.table != "prompts" and (rate := pass_rate(values)) is not None:
            row["pass_rate"] = rate
        self._note_unused(values, shape, record, row)
        if self._source.instruction:
            _instruct(row, self._source.instruction)
        return self._finished(row, record, values)

    def _note_unused(self, values: Row, shape: Shape, record: Record, row: Row) -> None:
        """Columns and keys that are not used; in the prompts table the columns travel with the row instead."""
        used = shape.uses if self.table == "preference" else shape.uses - WORSE
        unused = [name for name in values.keys() - used - OWN_COLUMNS[self.table] - BEFORE if values[name] is not None]
        if self.table == "prompts":
            if extra := extra_columns(values, shape, record):
                row["extra"] = json_text(extra, "extra")
        elif unused:
            self._unused.update(unused)
        for name in shape.uses:
            value = values.get(name)
            if value.__class__ is not str or value.startswith("["):
                self._unused.update(f"{name}[].{key}" for key in unknown_keys(value))

    def _finished(self, row: Row, record: Record, values: Row) -> tuple[Row, RowKey]:
        """The row with its id and key, as it stands in the table."""
        try:
            key = source_row_key(row, _given_id(values), record.prompt)
        except UnicodeEncodeError as error:
            raise BadRow(f"holds text that is not valid Unicode: {error}") from error
        pack_turns(row)
        path = self._source.path
        row["source"] = Path(path).name if self._source.kind in LOCAL else path
        return row, key

    def _note(self, raw: RawRow, reason: str) -> None:
        self.n_bad += 1
        if len(self.bad) < LISTED_BAD_ROWS:
            where = f"{raw.origin} {raw.number}"
            self.bad.append({"table": self.table, "source": self._source.path, "row": where, "reason": reason})

    def _check(self) -> None:
        if not self.n_read:
            told = "; ".join(["has no rows", *self._what_was_left_out])
            place = "its options" if self._left_out else "the file"
            raise DataError(f"{self.place}: source '{self._source.path}' {told}; check {place}, or remove the source")
        if self.n_bad > self._max_bad_fraction * self.n_read:
            listed = "".join(f"\n  {bad['row']}: {bad['reason']}" for bad in self.bad)
            raise DataError(
                f"{self.place}: {self.n_bad} of {self.n_read} rows of '{self._source.path}' cannot be used, more than "
                f"data.max_bad_fraction={self._max_bad_fraction}; correct them or raise the limit. The first of them:{listed}"
            )

    def _raw_rows(self) -> Iterator[RawRow]:
        if self._source.kind is SourceKind.huggingface:
            return read_hub(self._source, f"{self.place}.path")
        if self._source.kind is SourceKind.reasoning_gym:
            return read_generated(self._source, f"{self.place}.path")
        if self._source.kind is SourceKind.verifiers:
            return read_environment(self._source, f"{self.place}.path")
        found = found_files(self._source, f"{self.place}.path")
        self._passed_over = found.passed_over
        self._position = Position(found.files)
        if self._source.kind is SourceKind.stories:
            return read_stories(found.files, self._source, self._position, self._left_out)
        return read_files(found.files, self._position)


def _instruct(row: Row, instruction: str) -> None:
    """Put an instruction behind the prompt, which stays among the further columns as it was."""
    extra = json.loads(row["extra"]) if row.get("extra") else {}
    row["extra"] = json_text({**extra, ASKED: row["prompt"]}, "extra")
    row["prompt"] = with_text_behind(row["prompt"], f"\n\n{instruction}")


def _listed(names: list[str]) -> str:
    return ", ".join(repr(name) for name in names[:LISTED_COLUMNS]) + (", ..." if len(names) > LISTED_COLUMNS else "")


def _given_id(values: Row) -> str | None:
    value = values.get("id")
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise BadRow(f"'id' is a {type(value).__name__}, expected text or a whole number")
    return str(value)
