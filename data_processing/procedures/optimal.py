"""Answers of the procedures task as steps, and the optimal answer to a policy.

The optimal procedure asks the fewest questions on average over all attribute combinations. It is found exactly, by
dynamic programming over what is left of the policy once some attributes are known; equal rests share a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from data_processing.procedures.policy import Policy
from data_processing.procedures.vocabulary import ATTRIBUTES, Outcome

Target = Outcome | int  # an outcome, or the index of a step


@dataclass(frozen=True, slots=True)
class Step:
    """One question about the product and where each answer leads."""

    clause: str
    yes: Target
    no: Target


Procedure = tuple[Step, ...]
_Table = tuple[Outcome, ...]  # the outcome of each combination of some attributes; the first attribute is the highest bit


@dataclass(frozen=True, slots=True)
class _Rest:
    """What is left to decide: attributes that still matter, and the outcome of each of their combinations."""

    attributes: tuple[str, ...]
    table: _Table


def step_label(index: int) -> str:
    """A, B, ..., Z, AA, AB, ... for 0, 1, ..."""
    label = ""
    while index >= 0:
        index, letter = divmod(index, 26)
        label = chr(ord("A") + letter) + label
        index -= 1
    return label


def render(procedure: Sequence[Step]) -> str:
    """The answer text: one labelled step a line."""
    return "\n".join(
        f"{step_label(i)}. The product {s.clause}? If YES, {_target_text(s.yes)}. If NO, {_target_text(s.no)}."
        for i, s in enumerate(procedure)
    )


def _target_text(target: Target) -> str:
    return f"go to Step {step_label(target)}" if isinstance(target, int) else target


def optimal_questions(policy: Policy) -> int:
    """Questions an optimal procedure asks, summed over all combinations of the policy's attributes.

    At least one a combination, because a procedure has at least one step.
    """
    cost = _least_questions(policy.decisions)
    return round(max(cost, 1.0) * len(policy.decisions))


def optimal_procedure(policy: Policy) -> Procedure:
    """A procedure that decides as the policy does and asks the fewest questions on average.

    Ties are broken by the policy's own order. Targets always lie further down.
    """
    start = _simplified(policy.attributes, policy.decisions)
    if not start.attributes:
        return (Step(ATTRIBUTES[policy.attributes[0]], start.table[0], start.table[0]),)
    order: list[_Rest] = []
    _visit(start, order)
    order.reverse()
    index = {rest: i for i, rest in enumerate(order)}
    return tuple(_step(rest, index) for rest in order)


def _visit(rest: _Rest, finished: list[_Rest]) -> None:
    """Append every undecided rest below `rest`, then itself: reversed, every target lies further down."""
    if not rest.attributes or rest in finished:
        return
    yes, no = _answers(rest, _best_question(rest))
    _visit(no, finished)
    _visit(yes, finished)
    finished.append(rest)


def _step(rest: _Rest, index: dict[_Rest, int]) -> Step:
    question = _best_question(rest)
    yes, no = (index[a] if a.attributes else a.table[0] for a in _answers(rest, question))
    return Step(ATTRIBUTES[rest.attributes[question]], yes, no)


def _best_question(rest: _Rest) -> int:
    return min(range(len(rest.attributes)), key=lambda i: _questions_after(_halves(rest.table, i)))


def _questions_after(halves: tuple[_Table, _Table]) -> float:
    return (_least_questions(halves[0]) + _least_questions(halves[1])) / 2


@lru_cache(maxsize=65536)
def _least_questions(table: _Table) -> float:
    """Expected number of questions; exact, because it is a multiple of 1 / 2**MAX_ATTRIBUTES.

    It does not depend on what the attributes are, so different policies share the work.
    """
    questions = [_halves(table, i) for i in range(len(table).bit_length() - 1)]
    for yes, no in questions:
        if yes == no:
            return _least_questions(yes)
    return 1.0 + min(map(_questions_after, questions)) if questions else 0.0


def _halves(table: _Table, question: int) -> tuple[_Table, _Table]:
    """The rows in which attribute number `question` holds, and those in which it does not."""
    block = len(table) >> (question + 1)
    starts = range(0, len(table), 2 * block)
    yes = tuple(outcome for start in starts for outcome in table[start + block : start + 2 * block])
    no = tuple(outcome for start in starts for outcome in table[start : start + block])
    return yes, no


def _answers(rest: _Rest, question: int) -> tuple[_Rest, _Rest]:
    """What is left after YES and after NO."""
    others = rest.attributes[:question] + rest.attributes[question + 1 :]
    yes, no = _halves(rest.table, question)
    return _simplified(others, yes), _simplified(others, no)


def _simplified(attributes: tuple[str, ...], table: _Table) -> _Rest:
    """Without the attributes that cannot change the outcome any more."""
    for i in range(len(attributes)):
        yes, no = _halves(table, i)
        if yes == no:
            return _simplified(attributes[:i] + attributes[i + 1 :], yes)
    return _Rest(attributes, table)
