"""The number and unit of an answer, as a reward."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

from rlhf_core.rewards.verifiers.answers import marked_answer, nothing, reader, without_thinking
from rlhf_core.rewards.verifiers.quantities import MOST_CHARACTERS, PERCENT, Quantity, converted, quantities, unit_named
from rlhf_core.rewards.verifiers.verifier import UnusableLabelError, Verifier, labels_of, need
from rlhf_core.settings.rewards.verifiers import AUTO, NumericReward

if TYPE_CHECKING:
    from rlhf_core.rewards.build import Around


def build(source: NumericReward, around: Around) -> Verifier[Quantity]:
    """From settings; raises `ConfigError` where units are to be read and pint is not installed."""
    if source.units:
        need("pint", source.kind)
    label, marked = labels_of(source.kind), reader(source.answer, nothing)

    def read(text: str) -> str | None:
        """Of a text that marks no answer its end, where that has a number."""
        answer = marked(text)
        if answer is not None or source.answer != AUTO:
            return answer
        end = without_thinking(text)[-MOST_CHARACTERS:]
        return _UNMARKED + end if quantities(end) else None

    def worth(answer: str, right: Quantity) -> float:
        given = number_in(answer)
        return float(given is not None and agrees(given, right, source))

    return Verifier(source.kind, lambda response: _expected(label(response)), read, worth)


# Stands before a text that marks no answer.
_UNMARKED = "\0"


def number_in(answer: str) -> Quantity | None:
    """The number that an answer is: the first behind its last "="; of a text that marks none the last one."""
    is_unmarked = answer.startswith(_UNMARKED)
    found = quantities(answer[1:] if is_unmarked else answer.rpartition("=")[2])
    return found[-1 if is_unmarked else 0] if found else None


def agrees(given: Quantity, right: Quantity, source: NumericReward) -> bool:
    """Whether a number is the right one within the tolerances, in the right one's unit."""

    def near(value: Fraction | None, wanted: Fraction = right.value) -> bool:
        # Through text, so that 0.1 is a tenth.
        allowed = max(abs(wanted) * Fraction(str(source.relative_tolerance)), Fraction(str(source.absolute_tolerance)))
        return value is not None and abs(value - wanted) <= allowed

    if not source.units:
        return near(given.value)
    if right.unit == PERCENT:
        return (
            near(given.value)
            if given.unit == PERCENT
            else near(given.value * 100) or (source.unit_may_be_missing and near(given.value))
        )
    unit = unit_named(right.unit) if right.unit else None
    if unit is None:
        return near(given.value) or (given.unit == PERCENT and near(given.value / 100))
    if not given.unit or (given.unit != PERCENT and unit_named(given.unit) is None):
        return source.unit_may_be_missing and near(given.value)
    return given.unit != PERCENT and near(converted(given, unit))


def _expected(label: str) -> Quantity:
    """The number of a label: that of the answer that it marks, else its only one."""
    marked = marked_answer(label)
    if marked is not None and (right := number_in(marked)) is not None:
        return right
    found = quantities(label)
    if marked is None and len(found) == 1 and found[0] is not None:
        return found[0]
    raise UnusableLabelError(f"its label {label[:80]!r} is not one number; write the number alone, or behind '####'")
