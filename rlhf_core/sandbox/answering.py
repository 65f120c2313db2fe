"""The interpreter of the tested program: it loads the program and does what the tests ask, for as long as they ask.

Nothing that the program could do here earns anything: the tests, and what they expect, are in another interpreter.
"""

from __future__ import annotations

import operator
import sys

from rlhf_core.sandbox.modules import OUT_OF_MEMORY, PROGRAM, run_source
from rlhf_core.sandbox.wire import Wire, packed, unpacked

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class _Objects:
    """Handles, numbers, of what cannot be copied."""

    def __init__(self) -> None:
        self._all: list[Any] = []

    def handle(self, value: Any) -> int:
        self._all.append(value)
        return len(self._all) - 1

    def of(self, handle: Any) -> Any:
        return self._all[handle]


def serve(source: str, wire: Wire) -> int:
    """Load the program, tell its names, answer until the tests end. Returns the exit code."""
    objects, ran_out = _Objects(), False
    try:
        names = {name: value for name, value in run_source(source, PROGRAM, {}).items() if not name.startswith("__")}
        wire.send({name: _told(value, objects) for name, value in names.items()})
        while True:
            answer = _answer(wire.receive(), objects)
            ran_out |= answer[:2] == [False, "MemoryError"]
            wire.send(answer)
    except EOFError:
        return OUT_OF_MEMORY if ran_out else 0


def _answer(message: Any, objects: _Objects) -> list[Any]:
    """[True, value, the arguments afterwards] or [False, name of the error's class, its text]."""
    try:
        what, arguments, keywords = message
        args, kwargs = unpacked(arguments, objects.of), unpacked(keywords, objects.of)
        value = OPERATIONS[what](*args, **kwargs)
        return [True, packed(value, objects.handle), packed(args, objects.handle)]
    except BaseException as error:
        return [False, type(error).__name__, str(error)]


def _told(value: Any, objects: _Objects) -> Any:
    """A module and a class of errors by name, anything else as always."""
    if isinstance(value, type(sys)):
        return {"module": value.__name__}
    if isinstance(value, type) and issubclass(value, BaseException):
        return {"error": [base.__name__ for base in value.__mro__]}
    return {"value": packed(value, objects.handle)}


OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda function, *args, **kwargs: function(*args, **kwargs),
    "get": getattr,
    "set": setattr,
    "is_instance": isinstance,
    "item": operator.getitem,
    "set_item": operator.setitem,
    "delete_item": operator.delitem,
    **{
        name: getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge", "add", "sub", "mul", "truediv", "contains")
    },
    **{function.__name__: function for function in (len, iter, next, bool, str, repr, hash)},
}
