"""Named ways to spoil an optimal procedure, for the rejected side of preference pairs.

A corruption lists its candidates: the spoiled procedure and the index of its faulty step. Adding one is one function
and one line in `CORRUPTIONS`. Candidates that the checker still scores 1 are never used.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from data_processing.procedures.checker import check
from data_processing.procedures.optimal import Procedure, Step, Target, render
from data_processing.procedures.policy import Policy
from data_processing.procedures.vocabulary import ATTRIBUTES, OUTCOMES

Candidate = tuple[Procedure, int]


@dataclass(frozen=True, slots=True)
class Corruption:
    """One corruption: all its candidates, and how many steps it adds."""

    candidates: Callable[[Procedure, Policy], Iterator[Candidate]]
    added_steps: int = 0


def _with_target(procedure: Procedure, index: int, branch: str, target: Target) -> Procedure:
    step = procedure[index]
    changed = replace(step, yes=target) if branch == "yes" else replace(step, no=target)
    return (*procedure[:index], changed, *procedure[index + 1 :])


def _branches(procedure: Procedure) -> Iterator[tuple[int, str, Target]]:
    for i, step in enumerate(procedure):
        yield i, "yes", step.yes
        yield i, "no", step.no


def wrong_outcome(procedure: Procedure, policy: Policy) -> Iterator[Candidate]:
    """One outcome is another one."""
    for i, branch, target in _branches(procedure):
        for outcome in OUTCOMES:
            if not isinstance(target, int) and outcome != target:
                yield _with_target(procedure, i, branch, outcome), i


def swapped_branches(procedure: Procedure, policy: Policy) -> Iterator[Candidate]:
    """YES and NO of one step change places."""
    for i, step in enumerate(procedure):
        yield (*procedure[:i], Step(step.clause, step.no, step.yes), *procedure[i + 1 :]), i


def missing_step(procedure: Procedure, policy: Policy) -> Iterator[Candidate]:
    """One question is left out, as if its answer were always the same; faulty is the first step that reads differently."""
    for i, _, instead in _branches(procedure):
        has_step_before = any(i in (step.yes, step.no) for step in procedure)
        rest = tuple(
            Step(s.clause, *(_without(instead if target == i else target, i) for target in (s.yes, s.no)))
            for j, s in enumerate(procedure)
            if j != i
        )
        if rest and (has_step_before or instead == 1) and _reachable(rest) == set(range(len(rest))):
            yield rest, next(j for j, step in enumerate(rest) if step != procedure[j])


def _without(target: Target, index: int) -> Target:
    return target - 1 if isinstance(target, int) and target > index else target


def _reachable(procedure: Procedure) -> set[int]:
    reached = {0}
    for i, step in enumerate(procedure):  # targets lie further down
        if i in reached:
            reached |= {target for target in (step.yes, step.no) if isinstance(target, int)}
    return reached


def dangling_target(procedure: Procedure, policy: Policy) -> Iterator[Candidate]:
    """One step leads to a step that does not exist."""
    for i, branch, target in _branches(procedure):
        if isinstance(target, int):
            for beyond in range(len(procedure), len(procedure) + 3):
                yield _with_target(procedure, i, branch, beyond), i


def redundant_step(procedure: Procedure, policy: Policy) -> Iterator[Candidate]:
    """A step asks again what has just been answered."""
    for i, branch, _ in _branches(procedure):
        moved = tuple(Step(s.clause, _shifted(s.yes, i), _shifted(s.no, i)) for s in procedure)
        again = (*moved[: i + 1], moved[i], *moved[i + 1 :])
        yield _with_target(again, i, branch, i + 1), i + 1


def _shifted(target: Target, index: int) -> Target:
    return target + 1 if isinstance(target, int) and target > index else target


def invented_attribute(procedure: Procedure, policy: Policy) -> Iterator[Candidate]:
    """One step asks for an attribute the policy does not have."""
    for i, step in enumerate(procedure):
        for name, clause in ATTRIBUTES.items():
            if name not in policy.attributes:
                yield (*procedure[:i], replace(step, clause=clause), *procedure[i + 1 :]), i


def cycle(procedure: Procedure, policy: Policy) -> Iterator[Candidate]:
    """One step leads back to itself or to the first step."""
    for i, branch, target in _branches(procedure):
        for back in sorted({0, i}):
            if isinstance(target, int):
                yield _with_target(procedure, i, branch, back), i


CORRUPTIONS: dict[str, Corruption] = {
    "wrong_outcome": Corruption(wrong_outcome),
    "swapped_branches": Corruption(swapped_branches),
    "missing_step": Corruption(missing_step, added_steps=-1),
    "dangling_target": Corruption(dangling_target),
    "redundant_step": Corruption(redundant_step, added_steps=1),
    "invented_attribute": Corruption(invented_attribute),
    "cycle": Corruption(cycle),
}


def corrupt(name: str, procedure: Procedure, policy: Policy, rng: random.Random) -> Candidate | None:
    """A random candidate of corruption `name` that the checker scores below 1, with the index of its faulty step.

    None where the procedure offers none.
    """
    candidates = list(CORRUPTIONS[name].candidates(procedure, policy))
    rng.shuffle(candidates)
    label = policy.label()
    return next((c for c in candidates if check(label, render(c[0])).score < 1.0), None)
