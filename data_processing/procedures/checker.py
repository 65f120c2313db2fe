"""The checker of the procedures task: executes an answer on every combination of the policy's attributes.

It is total: any text gets numbers in [0, 1], and it is fast enough to be a reward.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from data_processing.procedures.optimal import optimal_questions
from data_processing.procedures.policy import parse_policy
from data_processing.procedures.vocabulary import ATTRIBUTES, OUTCOMES, Outcome

MAX_STEPS = 200  # longer answers are not valid; keeps the checker fast on any text

_TARGET = rf"({'|'.join(OUTCOMES)}|go to Step [A-Z]{{1,3}})"
_LINE = re.compile(rf"([A-Z]{{1,3}})\. The product ([^?]+)\? If YES, {_TARGET}\. If NO, {_TARGET}\.")


@dataclass(frozen=True, slots=True)
class ProcedureScores:
    """Shares in [0, 1] (see docs/data.md); all are 0 for a text that is not valid."""

    valid: float
    accuracy: float
    soundness: float
    efficiency: float
    score: float


NOT_VALID = ProcedureScores(0.0, 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class _Case:
    """What the label says: which bit of a combination each clause looks at, how each combination is decided."""

    bits: dict[str, int]
    decisions: tuple[Outcome, ...]
    optimal_questions: int


@dataclass(frozen=True, slots=True)
class ParsedStep:
    """One line of an answer, unresolved: targets are an outcome or "go to Step X"."""

    clause: str
    yes: str
    no: str


@dataclass(frozen=True, slots=True)
class _Execution:
    """`outcome` is None for an execution that does not end: a target is missing, or a step comes back."""

    outcome: str | None
    visited: tuple[int, ...]


def check(label: str, text: str) -> ProcedureScores:
    """Scores of the answer `text` to the policy `label` (JSON); raises `DataError` only for a label that is no policy.

    Execution starts at the first line. A question the policy does not know is answered NO. Where two lines bear the
    same label, targets mean the first of them.
    """
    case = _case(label)
    steps = parse_answer(text)
    if not steps:
        return NOT_VALID
    targets, exist = _resolved(steps)
    clauses = [case.bits.get(step.clause, 0) for _, step in steps]
    runs = [_execute(clauses, targets, combination) for combination in range(len(case.decisions))]
    accuracy = sum(run.outcome == decision for run, decision in zip(runs, case.decisions, strict=True)) / len(runs)
    ended = sum(run.outcome is not None for run in runs) / len(runs)
    reached = len(set().union(*(run.visited for run in runs))) / len(steps)
    soundness = exist * ended * reached
    efficiency = min(1.0, case.optimal_questions / sum(len(run.visited) for run in runs))
    return ProcedureScores(1.0, accuracy, soundness, efficiency, accuracy * soundness * efficiency)


def parse_answer(text: str) -> list[tuple[str, ParsedStep]]:
    """(label, step) of every non-empty line; an empty list where any line does not parse or there are too many."""
    steps: list[tuple[str, ParsedStep]] = []
    for line in text.split("\n"):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None or len(steps) == MAX_STEPS:
            return []
        steps.append((match[1], ParsedStep(match[2], match[3], match[4])))
    return steps


@lru_cache(maxsize=4096)
def _case(label: str) -> _Case:
    policy = parse_policy(label)
    highest = len(policy.attributes) - 1
    bits = {ATTRIBUTES[name]: 1 << (highest - i) for i, name in enumerate(policy.attributes)}
    return _Case(bits, policy.decisions, optimal_questions(policy))


def _resolved(steps: list[tuple[str, ParsedStep]]) -> tuple[list[tuple[str | int | None, str | int | None]], float]:
    """(NO, YES) targets of every step as outcome, index of a step, or None where missing; share of targets that exist."""
    index: dict[str, int] = {}
    for i, (label, _) in enumerate(steps):
        index.setdefault(label, i)

    def resolve(target: str) -> str | int | None:
        return target if target in OUTCOMES else index.get(target.removeprefix("go to Step "))

    targets = [(resolve(step.no), resolve(step.yes)) for _, step in steps]
    missing = sum(target is None for pair in targets for target in pair)
    return targets, 1.0 - missing / (2 * len(steps))


def _execute(bits: list[int], targets: list[tuple[str | int | None, str | int | None]], combination: int) -> _Execution:
    """Follow the answers of one combination until an outcome, a missing target, or a step seen before.

    A step answers the same each time, so a step seen before means that the execution never ends.
    """
    visited: dict[int, None] = {}
    place: str | int | None = 0
    while isinstance(place, int) and place not in visited:
        visited[place] = None
        place = targets[place][bool(combination & bits[place])]
    return _Execution(place if isinstance(place, str) else None, tuple(visited))
