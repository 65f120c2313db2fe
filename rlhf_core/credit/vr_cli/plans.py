"""The plan in a response: what stands behind its last marker. Source: vrcli.md, section 6."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

_THOUGHT_ENDS = "</think>"
# Words in a row that a plan shares with a completion, from which on it counts as copied.
_COPIED_WORDS = 4


class Plan(NamedTuple):
    """What is given to the generator, without white space around it; and whether the response had a marker."""

    text: str
    marked: bool


def extract_plan(response: str, markers: Sequence[str], *, require_marker: bool) -> Plan:
    """The plan of a response (text without special tokens).

    What is thought before the answer is no part of it. Then, for each marker in turn, what stands behind its last occurrence stays.
    Without any it is the whole answer, or with `require_marker` nothing.
    """
    text = response.rpartition(_THOUGHT_ENDS)[2].strip()
    marked = False
    for marker in markers:
        _, found, behind = text.rpartition(marker)
        if found:
            text, marked = behind.strip(), True
    return Plan(text if marked or not require_marker else "", marked)


def copied_share(plan: str, completion: str) -> float:
    """Share of the plan's runs of four words that stand in the completion too: a plan that gives the completion away copies it."""
    runs = _runs(plan)
    known = set(_runs(completion))
    return sum(run in known for run in runs) / len(runs) if runs else 0.0


def _runs(text: str) -> list[tuple[str, ...]]:
    words = text.casefold().split()
    return [tuple(words[i : i + _COPIED_WORDS]) for i in range(len(words) - _COPIED_WORDS + 1)]
