"""What passes between a program and its tests, which run in two interpreters: lines of JSON, plain values, and handles of objects.

A plain value (None, numbers, texts, bytes, lists, tuples, sets, dicts, decimals, fractions, arrays as lists) arrives as a copy of the built-in type,
whatever class the program gave it: no code of the program, such as an `__eq__` that is always true, comes with it.
"""

from __future__ import annotations

import json
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class Wire:
    """Two pipes to the other interpreter. Raises `EOFError` where that has ended."""

    def __init__(self, read_from: int, write_to: int) -> None:
        self._input = os.fdopen(read_from, "rb")
        self._output = write_to

    def send(self, message: Any) -> None:
        """Send a message that is JSON already."""
        rest = json.dumps(message).encode() + b"\n"
        while rest:
            try:
                rest = rest[os.write(self._output, rest) :]
            except BrokenPipeError:
                raise EOFError("the other interpreter has ended") from None

    def receive(self) -> Any:
        """Wait for the next message."""
        line = self._input.readline()
        if not line.endswith(b"\n"):
            raise EOFError("the other interpreter has ended")
        return json.loads(line)


def packed(value: Any, handle: Callable[[Any], Any]) -> Any:
    """`value` as JSON; `handle` gives the handle of what is not plain, and may refuse it by raising."""
    if value is None or isinstance(value, bool):
        return value
    for of, pack in _PLAIN:
        if isinstance(value, of):
            return pack(value)
    if isinstance(value, list) or hasattr(type(value), "tolist"):
        whole = value if isinstance(value, list) else value.tolist()
        return [packed(part, handle) for part in whole] if isinstance(whole, list) else packed(whole, handle)
    for of in (tuple, set, frozenset):
        if isinstance(value, of):
            return {of.__name__: [packed(part, handle) for part in value]}
    if isinstance(value, dict):
        return {"dict": [[packed(k, handle), packed(v, handle)] for k, v in value.items()]}
    return _packed_object(value, handle)


def _packed_object(value: Any, handle: Callable[[Any], Any]) -> Any:
    if type(value).__name__ in ("Decimal", "Fraction") and type(value).__module__ in ("decimal", "fractions"):
        return {type(value).__name__: str(value)}
    return {"object": handle(value)}


def unpacked(value: Any, of_handle: Callable[[Any], Any]) -> Any:
    """The inverse. Raises `ValueError` for what `packed` never makes."""
    if isinstance(value, list):
        return [unpacked(part, of_handle) for part in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise ValueError("not a message of this wire")
    ((name, parts),) = value.items()
    if name == "object":
        return of_handle(parts)
    if name == "dict":
        return {unpacked(k, of_handle): unpacked(v, of_handle) for k, v in parts}
    if name in _MADE_OF:
        return _MADE_OF[name](unpacked(part, of_handle) for part in parts)
    if name in _MADE_FROM:
        return _MADE_FROM[name](parts)
    raise ValueError("not a message of this wire")


def _decimal(text: str) -> Any:
    from decimal import Decimal

    return Decimal(text)


def _fraction(text: str) -> Any:
    from fractions import Fraction

    return Fraction(text)


_PLAIN: tuple[tuple[type, Callable[[Any], Any]], ...] = (
    (int, int.__index__),
    (float, float.__float__),
    (str, str.__str__),
    (bytes, lambda value: {"bytes": bytes.hex(value)}),
    (bytearray, lambda value: {"bytearray": bytearray.hex(value)}),
    (complex, lambda value: {"complex": [value.real, value.imag]}),
)
_MADE_OF: dict[str, Callable[[Any], Any]] = {"tuple": tuple, "set": set, "frozenset": frozenset}
_MADE_FROM: dict[str, Callable[[Any], Any]] = {
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "complex": lambda parts: complex(*parts),
    "Decimal": _decimal,
    "Fraction": _fraction,
}
