"""What an input may end in: success, or an error of ours that says in a line what is wrong, where, and what to do."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from data_processing.errors import AlignflowError, ConfigError, DataError

_LIMIT_S = 60.0
_MOST_CHARACTERS = 4000
# How messages say what is allowed or what to do; one of these stands in every one.
_REMEDY = re.compile(
    r"\b(allowed|expected|should|must|needs?|only|give|set|use|correct|remove|rename|copy|choose|raise|lower|write|save|check|"
    r"merge|add|change|put|name|take|make|start|end|known|convert|shorten|return|fetch|run|train|convert|did you mean|at least)\b"
)


class Finding(AssertionError):
    """An input that ended otherwise than inputs may end."""


def outcome(
    attempt: Callable[[], Any], names: Sequence[str], allowed: tuple[type[AlignflowError], ...] = (ConfigError, DataError)
) -> AlignflowError | None:
    """The error that the attempt ends with, None for success; any error but those `allowed` goes through.

    Raises `Finding` for a message that names none of `names`, no remedy, or is no line.
    """
    try:
        attempt()
    except allowed as error:
        check_message(error, names)
        return error
    return None


def check_message(error: AlignflowError, names: Sequence[str]) -> None:
    """Raise `Finding` unless the error is a line (rows are listed in further, indented ones) that names what is wrong."""
    text = str(error)
    first, *_ = text.splitlines() or [""]
    faults = {
        "it has no first line": not first.strip(),
        f"it names none of {list(names)}": not any(name in text for name in names),
        "it says nothing of what to do": not _REMEDY.search(text),
        "it holds a traceback": "Traceback (most recent call last)" in text,
        f"its first line has {len(first)} characters": len(first) > _MOST_CHARACTERS,
    }
    if found := [fault for fault, is_so in faults.items() if is_so]:
        raise Finding(f"{type(error).__name__}: {'; '.join(found)}: {text}")


@contextmanager
def within_limit() -> Iterator[None]:
    """Raise `Finding` in a block that takes a minute; in the main thread."""

    def end(*_: Any) -> None:
        raise Finding(f"no end within {_LIMIT_S:g} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, _LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
