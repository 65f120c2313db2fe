"""Rewards that the tests name by import path; they run in the reward actor."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def vowels(prompts: Sequence[Any], responses: Sequence[str], labels: Sequence[str | None]) -> list[float]:
    """Share of the characters that are vowels: a random model has some, a trained one many."""
    return [sum(c in "aeiou" for c in text) / max(1, len(text)) for text in responses]


def constant(prompts: Sequence[Any], responses: Sequence[str], labels: Sequence[str | None]) -> list[float]:
    return [0.5] * len(responses)


def infinite_once_trained(prompts: Sequence[Any], responses: Sequence[str], labels: Sequence[str | None]) -> list[float]:
    """The labels name a file that counts the calls; the third one gives infinity."""
    values = vowels(prompts, responses, labels)
    return [*values[:-1], float("inf")] if _call_number(labels) == 3 else values


def infinite_for_a_proposal(prompts: Sequence[Any], responses: Sequence[str], labels: Sequence[str | None]) -> list[float]:
    """The same for the sixth call: with two updates of a proposal a round, its second samples of the second round."""
    values = vowels(prompts, responses, labels)
    return [*values[:-1], float("inf")] if _call_number(labels) == 6 else values


def away_once_trained(prompts: Sequence[Any], responses: Sequence[str], labels: Sequence[str | None]) -> list[float]:
    """The labels name a file that counts the calls; the third and the fourth find no network."""
    if _call_number(labels) in (3, 4):
        raise ConnectionError("the judge is away")
    return vowels(prompts, responses, labels)


def endless_once_trained(prompts: Sequence[Any], responses: Sequence[str], labels: Sequence[str | None]) -> list[float]:
    """The labels name a file that counts the calls; the third does not end."""
    if _call_number(labels) == 3:
        time.sleep(600)
    return vowels(prompts, responses, labels)


def flat_for_some(prompts: Sequence[Any], responses: Sequence[str], labels: Sequence[str | None]) -> list[float]:
    """Answers to every third prompt are all worth the same; the labels name a file that counts the calls, the sixth gives infinity."""
    values = [
        0.5 if "and" not in p[0]["content"] else v for p, v in zip(prompts, vowels(prompts, responses, labels), strict=True)
    ]
    return [*values[:-1], float("inf")] if _call_number(labels) == 6 else values


_CALLS: list[int] = []


def drifts(prompts: Sequence[Any], responses: Sequence[str], labels: Sequence[str | None]) -> list[float]:
    """Worth more with every call, by half of what a known answer may be worth."""
    _CALLS.append(1)
    return [value + 0.5 * len(_CALLS) for value in vowels(prompts, responses, labels)]


def zero(prompts: Sequence[Any], responses: Sequence[str], labels: Sequence[str | None]) -> list[float]:
    return [0.0] * len(responses)


def first_token(completions: Sequence[Any], completion_ids: Sequence[list[int]], **columns: Any) -> list[dict[str, Any]]:
    """Nothing for a response, and 1 for its first token."""
    return [{"score": 0.0, "token_rewards": [1.0] + [0.0] * (len(ids) - 1)} for ids in completion_ids]


def patchy(prompts: Sequence[Any], responses: Sequence[str], labels: Sequence[str | None]) -> list[float | None]:
    """Nothing for the first response of a round, NaN for the second; the labels' file counts rounds, the first one is flat."""
    values = constant(prompts, responses, labels) if _call_number(labels) == 1 else vowels(prompts, responses, labels)
    return [None, float("nan"), *values[2:]]


def _call_number(labels: Sequence[str | None]) -> int:
    """How many calls there were, this one included."""
    calls = Path(str(labels[0]))
    calls.write_text(calls.read_text() + "x" if calls.exists() else "x")
    return len(calls.read_text())


def no_idea(prompts: Sequence[Any], responses: Sequence[str], labels: Sequence[str | None]) -> list[None]:
    return [None] * len(responses)


def dies(prompts: Sequence[Any], responses: Sequence[str], labels: Sequence[str | None]) -> list[float]:
    os.kill(os.getpid(), signal.SIGKILL)
    return []
