"""What the tables take from a row besides its turns: labels, margins, judgements, tools, and the columns that travel along."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from data_processing.schemas import TableName
from data_processing.sources.recognise import BEFORE, Shape
from data_processing.sources.record import Record
from data_processing.sources.turn import BadRow, tools
from data_processing.turns import ASKED

Row = dict[str, Any]

_TOOLS = ("tools", "functions")
# What a verifier needs, by the first of these names; before them stands `reward_model.ground_truth`.
_LABELS = ("label", "ground_truth", "answer", "final_answer", "solution")
_SCORES = ("score_chosen", "score_rejected")
_JUDGEMENTS = ("desirable", "label", "kto_tag")
_EVERYWHERE = frozenset({"id", "weight", *_TOOLS})
_LEARNT = _EVERYWHERE | {"pass_rate"}

# Columns that a table takes from a row of any shape.
OWN_COLUMNS: dict[str, frozenset[str]] = {
    "sft": _LEARNT | {"condition"},
    "preference": _LEARNT | {"margin", *_SCORES},
    "prompts": _EVERYWHERE,
    "unpaired": _LEARNT | {*_JUDGEMENTS},
    "stepwise": _LEARNT,
}


def row_tools(values: Row) -> list[dict[str, Any]]:
    """The functions that a row's conversation may call; raises `BadRow` where they cannot be read."""
    if (weight := values.get("weight")) not in (None, 1):
        raise BadRow(f"'weight' is {weight!r}: rows have no weights here; remove the column, or repeat the rows that count more")
    return next((found for name in _TOOLS if name in values and (found := tools(values[name], name))), [])


def pass_rate(values: Row) -> float | None:
    """The share of tries that got the row right, where it has a column for it; in the prompts table that is among `extra`."""
    given = values.get("pass_rate")
    return None if given is None or given == "" else _number(given, "pass_rate")


def renamed(values: Row, columns: Mapping[str, str]) -> Row:
    """The row with its columns under the names that `columns` gives them; raises `BadRow` where two get one name."""
    if not columns:
        return values
    found = {columns.get(name, name): value for name, value in values.items()}
    if len(found) < len(values):
        names = [columns.get(name, name) for name in values]
        raise BadRow(f"has two columns {next(n for n in names if names.count(n) > 1)!r} once they are renamed by 'columns'")
    return found


def extra_columns(values: Row, shape: Shape, record: Record) -> Row:
    """The columns of a prompt's row that are neither its prompt nor its label; and the answer of a whole conversation.

    That is `response`, or `last_answer` where the row has a column of that name.
    """
    _, label = _found_label(values)
    used = {"id", *_TOOLS, *BEFORE, *(shape.uses - shape.answers)}
    taken = used if label in (None, "reward_model") else used | {label}
    if values.get(ASKED) is not None:
        raise BadRow(
            f"has a column '{ASKED}', which is what a prompt is called here without its source's instruction: rename it with 'columns'"
        )
    extra = {name: value for name, value in values.items() if value is not None and name not in taken}
    if not shape.answers and record.response is not None:
        extra["response" if extra.get("response") in (None, "") else "last_answer"] = record.response
    return extra


def json_text(value: Any, column: str) -> str:
    """A value of any source as JSON: dates and bytes as text."""
    try:
        return msgspec.json.encode(value).decode()
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        if isinstance(error, UnicodeEncodeError):
            raise BadRow(f"holds text that is not valid Unicode: {error}") from error
        raise BadRow(f"'{column}' cannot be written as JSON: {error}") from error


def _sft_row(record: Record, values: Row) -> Row:
    row = {"messages": [*record.prompt, *(record.response or [])]}
    condition = _text(values.get("condition"), "condition")
    return row if condition is None else {**row, "condition": condition}


def _preference_row(record: Record, values: Row) -> Row:
    row = {"prompt": record.prompt, "chosen": record.response, "rejected": record.rejected}
    return {**row, "margin": _margin(values), "detail": None}


def _prompts_row(record: Record, values: Row) -> Row:
    label, _ = _found_label(values)
    return {"prompt": record.prompt, "label": _text(label, "label")}


def _unpaired_row(record: Record, values: Row) -> Row:
    return {"prompt": record.prompt, "response": record.response, "desirable": _flag(values)}


def _stepwise_row(record: Record, values: Row) -> Row:
    return {
        "prompt": record.prompt,
        "steps": record.response,
        "labels": [_as_flag(label, "labels") for label in values["labels"]],
    }


def _margin(values: Row) -> float | None:
    if values.get("margin") in (None, "") and all(values.get(name) not in (None, "") for name in _SCORES):
        better, worse = (_number(values[name], name) for name in _SCORES)
        return better - worse
    given = values.get("margin")
    return None if given is None or given == "" else _number(given, "margin")


def _number(value: Any, column: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise BadRow(f"'{column}' is {value!r}, expected a finite number")
    return number


def _found_label(values: Row) -> tuple[Any, str | None]:
    """What a verifier needs, and the column that it is taken from."""
    rule = values.get("reward_model")
    if values.get("label") is None and isinstance(rule, dict) and rule.get("ground_truth") is not None:
        return rule["ground_truth"], "reward_model"
    return next(((values[name], name) for name in _LABELS if values.get(name) is not None), (None, None))


def _text(value: Any, column: str) -> str | None:
    """Text as it is, anything else as JSON."""
    if value is None or isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise BadRow(f"'{column}' cannot be written as JSON: {error}") from error


def _flag(values: Row) -> bool:
    column = next((name for name in _JUDGEMENTS if values.get(name) is not None), _JUDGEMENTS[0])
    return _as_flag(values.get(column), column)


def _as_flag(value: Any, column: str) -> bool:
    flags = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
    flag = flags.get(str(value).strip().lower())
    if flag is None:
        raise BadRow(f"'{column}' is {value!r}, expected true or false")
    return flag


ROW_BUILDERS: dict[TableName, Callable[[Record, Row], Row]] = {
    "sft": _sft_row,
    "preference": _preference_row,
    "prompts": _prompts_row,
    "unpaired": _unpaired_row,
    "stepwise": _stepwise_row,
}
