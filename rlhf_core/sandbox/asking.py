"""The interpreter of the tests: they see the program's functions and objects as stand-ins, which ask the other interpreter."""

from __future__ import annotations

import builtins
import importlib
import os
import sys

from rlhf_core.sandbox.modules import PROGRAM, RAISED, add_module, run_source
from rlhf_core.sandbox.wire import Wire, packed, unpacked

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

REPORT = "__report__"
# What the tests report, a byte each: a check that held, one that did not, and that they ran to their end.
HELD, BROKEN, ENDED = b"+", b"-", b"."


class Stand:
    """Stands for an object of the program.

    Operators work between two of them, and are refused between one and a plain value: there the program would say itself what
    a test found.
    """

    def __init__(self, program: Program, handle: int) -> None:
        vars(self).update(_program=program, _handle=handle)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the program's function returns."""
        return self._program.ask("call", self, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        # Protocols of libraries (`__array_interface__`) would take the program's word for addresses in this process.
        if name.startswith("__"):
            raise AttributeError(name)
        return self._program.ask("get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._program.ask("set", self, name, value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stand) and bool(self._program.ask("eq", self, other))

    def __hash__(self) -> int:
        return hash(self._program.ask("hash", self))

    def __instancecheck__(self, value: object) -> bool:
        return isinstance(value, Stand) and bool(self._program.ask("is_instance", value, self))


def _asks(what: str) -> Callable[..., Any]:
    return lambda self, *args: self._program.ask(what, self, *args)


def _asks_of_two(what: str) -> Callable[..., Any]:
    return lambda self, other: self._program.ask(what, self, other) if isinstance(other, Stand) else NotImplemented


for _name in ("len", "iter", "next", "bool", "str", "repr"):
    setattr(Stand, f"__{_name}__", _asks(_name))
for _name, _what in (("getitem", "item"), ("setitem", "set_item"), ("delitem", "delete_item")):
    setattr(Stand, f"__{_name}__", _asks(_what))
for _name in ("lt", "le", "gt", "ge", "add", "sub", "mul", "truediv"):
    setattr(Stand, f"__{_name}__", _asks_of_two(_name))


class Program:
    """The program, as its tests reach it."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._errors: dict[str, type[BaseException]] = {}

    def names(self, entry_point: str) -> dict[str, object]:
        """What the program defines. Raises `EOFError` where it ended before it had done so.

        The names of built-ins and of modules of the standard library keep their meaning, whatever the program made of them, but for
        `entry_point`: a program that defines `abs` or `math` anew would judge itself.
        """
        told = self._wire.receive()
        names = {name: self._meant(name, value) for name, value in told.items() if not hasattr(builtins, name)}
        names |= {name: importlib.import_module(name) for name in names if name in sys.stdlib_module_names}
        return names | {name: self._meant(name, value) for name, value in told.items() if name == entry_point}

    def ask(self, what: str, *args: Any, **kwargs: Any) -> Any:
        """Have the program do something. Lists, dicts and sets among `args` are then as it left them; its errors are raised here."""
        self._wire.send([what, packed(list(args), _handle), packed(kwargs, _handle)])
        answer = self._wire.receive()
        if answer[0] is not True:
            raise self._error(str(answer[1]))(str(answer[2]))
        for given, left in zip(args, unpacked(answer[2], self._stand), strict=True):
            _make_like(given, left)
        return unpacked(answer[1], self._stand)

    def _stand(self, handle: int) -> Stand:
        return Stand(self, handle)

    def _meant(self, name: str, told: dict[str, Any]) -> object:
        ((kind, value),) = told.items()
        if kind == "module":
            return _module(value)
        if kind == "error":
            self._errors[name] = type(name, (self._error(value[1]),), {})
            return self._errors[name]
        return unpacked(value, self._stand)

    def _error(self, name: str) -> type[BaseException]:
        """The program's class of errors of that name, or the built-in one."""
        found = self._errors.get(name) or getattr(builtins, name, None)
        return found if isinstance(found, type) and issubclass(found, Exception) else RuntimeError


def test(source: str, entry_point: str, wire: Wire, report_to: int) -> int:
    """Run the tests against the program at the other end, and report each check. Returns the exit code."""
    names = Program(wire).names(entry_point)
    add_module(PROGRAM, names)

    def report(held: bool) -> None:
        os.write(report_to, HELD if held else BROKEN)

    try:
        run_source(source, "__main__", {**names, REPORT: report})
    except SystemExit as end:
        if end.code:
            return RAISED
    os.write(report_to, ENDED)
    return 0


def _handle(value: Any) -> int:
    if not isinstance(value, Stand):
        raise TypeError(f"a {type(value).__name__} of the tests cannot be given to the program: only plain values can")
    return int(vars(value)["_handle"])


def _module(name: str) -> object:
    """The standard library's module of that name; None for another: nothing else of the program's is imported here."""
    return importlib.import_module(name) if name.partition(".")[0] in sys.stdlib_module_names else None


def _make_like(given: Any, left: Any) -> None:
    """Change a list, dict or set in place, as the program has changed its copy."""
    if isinstance(given, list) and isinstance(left, list):
        given[:] = left
    elif isinstance(given, dict | set) and type(left) is type(given):
        given.clear()
        given.update(left)
