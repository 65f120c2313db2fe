"""The tests of a row, as data sets have them, and the program of a response; nothing here runs either."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from rlhf_core.rewards.verifiers.answers import without_thinking
from rlhf_core.sandbox.asking import BROKEN, ENDED, HELD, REPORT

_FENCE = re.compile(r"^[ \t]*```[ \t]*(\w*)[^\n]*$", re.MULTILINE)
_PYTHON = ("python", "python3", "py", "")

# What asks a function for each case; a list of one may stand for what is in it, as some data sets have it.
_CALLS = """
import json as _json
_function = {name} if {name!r} in globals() else Solution().{name}
def _as_json(_value):
    return _json.loads(_json.dumps(_value))
for _arguments, _wanted in _json.loads({cases!r}):
    assert _as_json(_function(*_arguments)) in (_wanted, _wanted[0] if isinstance(_wanted, list) and len(_wanted) == 1 else _wanted)
"""


@dataclass(frozen=True, slots=True)
class Case:
    """A script's standard input, and what it should write."""

    input: str
    output: str


@dataclass(frozen=True, slots=True)
class Asserts:
    """Python code that tests the names of a program and reports its `count` checks (at least: loops repeat some)."""

    source: str
    count: int

    def share_passed(self, reports: bytes) -> float:
        """Share of the checks that held, by what was reported; those that were not come to did not hold. 1 for code without any that ended."""
        held, reported = reports.count(HELD), reports.count(HELD) + reports.count(BROKEN)
        if reports.endswith(ENDED):
            return held / reported if reported else float(not self.count)
        return held / max(self.count, reported + 1)


def program_of(text: str, *, needs_fence: bool) -> str | None:
    """The last fenced block of Python, or in no language, thinking apart; without one all of the text, or None where `needs_fence`."""
    said = without_thinking(text)
    fences = list(_FENCE.finditer(said))
    pairs = zip(fences[::2], fences[1::2], strict=False)
    blocks = [said[start.end() : end.start()] for start, end in pairs if start.group(1).lower() in _PYTHON]
    return blocks[-1] if blocks else None if needs_fence else said


@lru_cache(maxsize=1024)
def read_tests(text: str, entry_point: str = "", max_cases: int | None = None) -> Asserts | tuple[Case, ...]:
    """Tests as text: JSON with inputs and outputs or with asserts, or Python code. Raises `ValueError` saying what is wrong."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return _asserts(text, entry_point)
    if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
        return _asserts("\n".join(value), entry_point)
    pairs, function = _pairs(value)
    if not pairs:
        raise ValueError("it has no inputs")
    pairs = pairs[:max_cases]
    if function:
        return _asserts(_CALLS.format(name=_identifier(function), cases=json.dumps(pairs)), "", len(pairs))
    return tuple(Case(_as_text(given), _as_text(wanted)) for given, wanted in pairs)


def is_same_output(written: str, wanted: str, tolerance: float) -> bool:
    """Whether two outputs are the same but for white space, and numbers in them by no more than `tolerance`."""
    ours, theirs = written.split(), wanted.split()
    return len(ours) == len(theirs) and all(_is_same_word(own, other, tolerance) for own, other in zip(ours, theirs, strict=True))


def _is_same_word(own: str, other: str, tolerance: float) -> bool:
    if own == other or not tolerance:
        return own == other
    try:
        return math.isclose(float(own), float(other), rel_tol=tolerance, abs_tol=tolerance)
    except ValueError:
        return False


def _pairs(value: Any) -> tuple[list[tuple[Any, Any]], str]:
    """Inputs with their outputs, and the function that they are for, if any."""
    if isinstance(value, list) and all(isinstance(part, dict) and {"input", "output"} <= set(part) for part in value):
        return [(part["input"], part["output"]) for part in value], ""
    if isinstance(value, dict) and isinstance(value.get("inputs"), list) and isinstance(value.get("outputs"), list):
        if len(value["inputs"]) != len(value["outputs"]):
            raise ValueError(f"it has {len(value['inputs'])} inputs and {len(value['outputs'])} outputs")
        return list(zip(value["inputs"], value["outputs"], strict=True)), value.get("fn_name") or ""
    raise ValueError('JSON is a list of {"input": ..., "output": ...} or of asserts, or {"inputs": [...], "outputs": [...]}')


def _asserts(source: str, entry_point: str, count: int = 0) -> Asserts:
    reporting = _Reporting()
    try:
        tree = ast.fix_missing_locations(reporting.visit(ast.parse(source)))
        started = "\n".join([ast.unparse(tree), *_started(tree, entry_point)])
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"it is neither JSON nor Python: {error}") from None
    return Asserts(started, max(count, reporting.count))


def _started(tree: ast.Module, entry_point: str) -> Iterator[str]:
    """What starts tests that only define functions and classes: `check`, those of pytest without fixtures, and those of unittest."""
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    for part in tree.body:
        if not isinstance(part, ast.FunctionDef) or part.name in used:
            continue
        if part.name == "check":
            yield f"check({_identifier(entry_point)})"
        elif part.name.startswith("test") and not part.args.args:
            yield f"try:\n    {part.name}()\nexcept Exception:\n    {REPORT}(False)"
    is_unittest = any(isinstance(part, ast.ClassDef) and "TestCase" in ast.unparse(part).split("\n", 1)[0] for part in tree.body)
    if is_unittest and not any(isinstance(node, ast.Attribute) and node.attr == "main" for node in ast.walk(tree)):
        yield "import unittest\nunittest.main()"


class _Reporting(ast.NodeTransformer):
    """Each assert reports whether it holds, and the code goes on; but in a `try`, which may be about that very assert."""

    def __init__(self) -> None:
        self.count = 0

    def visit_Assert(self, node: ast.Assert) -> ast.Try:
        """The assert with its report."""
        self.count += 1
        held, broken = (ast.parse(f"{REPORT}({held})").body for held in (True, False))
        return ast.Try([node], [ast.ExceptHandler(ast.Name("Exception", ast.Load()), None, broken)], held, [])

    def visit_Try(self, node: ast.Try) -> ast.Try:
        """As it is."""
        return node


def _identifier(name: str) -> str:
    if not name.isidentifier():
        raise ValueError(f"it needs the name of the function under test, and '{name}' is none")
    return name


def _as_text(value: Any) -> str:
    """Text as it is, a list as lines."""
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)
