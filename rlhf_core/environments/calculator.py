"""A calculator as a tool: the model may write `<calc>2 * (3 + 4)</calc>` and is told the value; the answer is checked at the end."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from rlhf_core.environments.base import Message, Reply

_CALL = re.compile(r"<calc>(.*?)</calc>", re.DOTALL)
_ANSWER = re.compile(r"-?\d+(?:\.\d+)?(?:/\d+)?")
_OPERATORS: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_LONGEST_CHARACTERS = 200


class Calculator:
    """Answers calls with their values, and ends with a turn that has none: worth 1 where its last number is the label."""

    def __init__(self, turn_cost: float = 0.0) -> None:
        self._turn_cost, self._label = turn_cost, ""

    def reset(self, prompt: Sequence[Message], label: str | None, columns: Mapping[str, Any]) -> None:
        """Raises `ValueError` for a prompt without a number as label."""
        if label is None or not _ANSWER.fullmatch(label.strip()):
            raise ValueError(f"the label {label!r} is no number")
        self._label = label.strip()

    def step(self, turn: Message) -> Reply:
        """The values of all calls of the turn, or the end."""
        calls = _CALL.findall(turn["content"])
        if calls:
            values = [_value(call) for call in calls]
            errors = sum(value is None for value in values)
            told = "\n".join(f"{call.strip()} = {'?' if v is None else v}" for call, v in zip(calls, values, strict=True))
            return Reply(
                [{"role": "user", "content": told}], reward=-self._turn_cost, metrics={"calls": len(calls), "bad_calls": errors}
            )
        numbers = _ANSWER.findall(turn["content"].replace(",", ""))
        right = bool(numbers) and Fraction(numbers[-1]) == Fraction(self._label)
        return Reply(done=True, reward=float(right), metrics={"right": float(right)})


def _value(text: str) -> str | None:
    """The value of an expression of numbers, + - * / and brackets, exactly; None for anything else."""
    try:
        value = _evaluated(ast.parse(text.strip()[:_LONGEST_CHARACTERS], mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None
    return str(value)


def _evaluated(node: ast.expr) -> Fraction:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return Fraction(str(node.value))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_evaluated(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        found: Fraction = _OPERATORS[type(node.op)](_evaluated(node.left), _evaluated(node.right))
        return found
    raise ValueError("is no arithmetic")
