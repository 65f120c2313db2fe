"""Rewards that the tests name by import path; they run in the reward actor."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def vowels(prompts: Sequence[Any], responses: Sequence[str], labels: Sequence[str | None]) -> list[float]:
    """Share of the characters that are vowels: a random model has some, a trained one many."""
    return [sum(c in "aeiou" for c in text) / max(1, len(text)) for text in responses]


def constant(prompts: Sequence[Any], responses: Sequence[str], labels: Sequence[str | None]) -> list[float]:
    return [0.5] * len(responses)


def nan_once_trained(prompts: Sequence[Any], responses: Sequence[str], labels: Sequence[str | None]) -> list[float]:
    """The labels name a file that counts the calls; the third one gives NaN."""
    calls = Path(str(labels[0]))
    calls.write_text(calls.read_text() + "x" if calls.exists() else "x")
    values = vowels(prompts, responses, labels)
    return [*values[:-1], float("nan")] if len(calls.read_text()) == 3 else values


def dies(prompts: Sequence[Any], responses: Sequence[str], labels: Sequence[str | None]) -> list[float]:
    os.kill(os.getpid(), signal.SIGKILL)
    return []
