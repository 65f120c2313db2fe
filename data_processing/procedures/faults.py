"""What is wrong with a procedure, in words for the report. The numbers are the checker's; this only points at causes."""

from __future__ import annotations

import re

from data_processing.procedures.checker import ProcedureScores, check
from data_processing.procedures.policy import parse_policy
from data_processing.procedures.vocabulary import ATTRIBUTES, OUTCOMES

# Takes a line apart that the checker has found valid.
_STEP = re.compile(r"(\w+)\. The product (.+)\? If YES, (.+)\. If NO, (.+)\.")


def procedure_faults(label: str, text: str) -> tuple[str, ...]:
    """Faults of the answer `text` to the policy `label` (JSON); none for an optimal procedure."""
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    scores = check(label, text)
    if not lines:
        return ("the answer is empty",)
    if not scores.valid:
        return _unreadable_lines(label, lines)
    steps = [match.groups() for _, line in lines if (match := _STEP.fullmatch(line))]
    known = {ATTRIBUTES[name] for name in parse_policy(label).attributes}
    return (*_faults_of_steps(steps, known), *_faults_of_execution(scores))


def _unreadable_lines(label: str, lines: list[tuple[int, str]]) -> tuple[str, ...]:
    """The lines that are no steps, by number; the first three."""
    bad = [(number, line) for number, line in lines if not check(label, line).valid]
    more = (f"and {len(bad) - 3} more lines",) if len(bad) > 3 else ()
    shown = tuple(f"line {number} is not a step: “{line[:60]}”" for number, line in bad[:3])
    return (*shown, *more) if bad else ("more steps than the checker reads",)


def _faults_of_steps(steps: list[tuple[str, ...]], known: set[str]) -> list[str]:
    labels = [name for name, *_ in steps]
    faults = [f"step {name} comes twice" for name in dict.fromkeys(labels) if labels.count(name) > 1]
    for name, clause, *targets in steps:
        jumps = [target.removeprefix("go to Step ") for target in targets if target not in OUTCOMES]
        faults += [f"step {name} goes to step {jump}, which is missing" for jump in jumps if jump not in labels]
        if clause not in known:
            faults.append(f"step {name} asks what the policy does not mention: “{clause}”")
    return faults


def _faults_of_execution(scores: ProcedureScores) -> list[str]:
    if scores.accuracy < 1:
        return [f"{1 - scores.accuracy:.0%} of the cases decided wrongly or never"]
    if scores.soundness < 1:
        return ["some steps are never reached"]
    return ["asks more questions than needed"] if scores.efficiency < 1 else []
