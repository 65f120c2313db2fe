"""Rows that reasoning-gym makes: questions of one of its datasets, with what its own checker needs of each."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from dataclasses import fields
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from data_processing.apart import lines_of
from data_processing.config import TableSource
from data_processing.errors import ConfigError
from data_processing.sources.files import RawRow
from data_processing.wording import did_you_mean

_LIBRARY = "reasoning-gym"
# Stand in JSON for what it has no form of; checkers of the library tell a tuple from a list.
_TUPLE, _SET, _DICT = "__tuple__", "__set__", "__dict__"
# Settings of a generator that the source has names of its own for.
_OURS = frozenset({"seed", "size"})


def version_for(source: TableSource, field: str) -> str:
    """The version of the library that will make the rows; another one may make others.

    Raises `ConfigError` where it is not installed or not the source's `revision`, for an unknown dataset, and for options that the
    dataset does not take.
    """
    try:
        installed = version(_LIBRARY)
    except PackageNotFoundError:
        raise ConfigError(
            f"{field}: kind 'reasoning_gym' needs {_LIBRARY}, which is not installed: pip install \"alignflow[rewards]\""
        ) from None
    if source.revision not in (None, installed):
        raise ConfigError(
            f"{field}: the rows are those of {_LIBRARY} {source.revision}, and {installed} is installed, which may make others; "
            "install that version, or remove the revision"
        )
    _dataset(source, field)
    return installed


def read_generated(source: TableSource, field: str) -> Iterator[RawRow]:
    """The rows, numbered from 1: question, answer, and, for the reward of this kind, the dataset's name and the entry as JSON.

    Raises what `version_for` does.
    """
    version_for(source, field)
    failed = f"{field}: {_LIBRARY} failed to make {source.max_rows} rows of '{source.path}'; choose other options or rows: "
    for number, line in enumerate(lines_of(__name__, source.model_dump_json(), failed), 1):
        entry = entry_of(line)
        row = {"question": entry["question"], "answer": entry["answer"], "dataset": source.path, "entry": line.rstrip("\n")}
        yield RawRow(f"{source.path} row", number, row)


def main(source: TableSource) -> None:
    """Write the entries, a line each."""
    lines = sys.stdout
    # Some datasets print, and some draw from Python's own generator.
    sys.stdout = sys.stderr
    dataset = _dataset(source, source.path)
    for index in range(source.max_rows or 0):
        random.seed(source.seed + index)
        lines.write(entry_text(dataset[index]) + "\n")
        lines.flush()


def entry_text(entry: Any) -> str:
    """An entry as JSON that `entry_of` reads back as it was, tuples, sets and keys that are no texts included."""
    return json.dumps(_tagged(entry), ensure_ascii=False, default=lambda value: value.item())


def entry_of(text: str) -> Any:
    """The entry that a text holds."""
    return json.loads(text, object_hook=_untagged)


def _tagged(value: Any) -> Any:
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value):
            return {key: _tagged(its) for key, its in value.items()}
        return {_DICT: [[_tagged(key), _tagged(its)] for key, its in value.items()]}
    if isinstance(value, (set, frozenset)):
        return {_SET: sorted(map(_tagged, value), key=repr)}
    if isinstance(value, (list, tuple)):
        items = [_tagged(item) for item in value]
        return {_TUPLE: items} if isinstance(value, tuple) else items
    return value.value if isinstance(value, Enum) else value


def _untagged(value: dict[str, Any]) -> Any:
    for tag, kind in ((_TUPLE, tuple), (_SET, set), (_DICT, dict)):
        if value.keys() == {tag}:
            return kind(value[tag])
    return value


def _dataset(source: TableSource, field: str) -> Any:
    from reasoning_gym.factory import DATASETS, create_dataset

    if source.path not in DATASETS:
        near = did_you_mean(source.path, DATASETS)
        raise ConfigError(f"{field}: {_LIBRARY} has no dataset '{source.path}'; {near}it has {', '.join(sorted(DATASETS))}")
    known = {its.name for its in fields(DATASETS[source.path][1])} - _OURS
    if unknown := [name for name in source.options if name not in known]:
        raise ConfigError(
            f"{field}: dataset '{source.path}' has no option '{unknown[0]}'; {did_you_mean(unknown[0], known)}"
            f"it has {', '.join(sorted(known)) or 'none'}"
        )
    try:
        return create_dataset(source.path, seed=source.seed, size=source.max_rows, **source.options)
    except (AssertionError, TypeError, ValueError) as error:
        raise ConfigError(f"{field}: dataset '{source.path}' refuses options {source.options}: {error}; correct them") from error


if __name__ == "__main__":
    main(TableSource.model_validate_json(sys.argv[1]))
