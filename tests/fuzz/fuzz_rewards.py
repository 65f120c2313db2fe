"""Reward functions that return, raise and ask for anything: each response gets a finite reward or none, or the run is told why."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from data_processing.errors import AlignflowError, ConfigError, OutOfMemoryError
from rlhf_core.rewards.base import ScoredResponse
from rlhf_core.rewards.compose import ComposedReward
from rlhf_core.rewards.errors import InfiniteRewardError, TransientRewardError
from rlhf_core.rewards.python_function import PythonScorer
from rlhf_core.rewards.weighing import Weighing
from tests.fuzz.outcome import Finding, outcome
from tests.fuzz.values import NUMBERS, TEXTS, text, value

MODULE = "rewards_of_the_fuzz"
ERRORS: tuple[type[BaseException], ...] = (
    TypeError, ValueError, KeyError, IndexError, AttributeError, ZeroDivisionError, RuntimeError, FileNotFoundError, PermissionError, OSError,
    RecursionError, StopIteration, GeneratorExit, SystemExit, NotImplementedError, AssertionError, UnicodeError, EOFError, BufferError, Warning,
    ConnectionError, TimeoutError, BrokenPipeError, TransientRewardError, ConfigError, StopAsyncIteration, ExceptionGroup,
)  # fmt: skip
# What may work at the next try, or is the machine's, and so is not refused for good (docs/rewards.md).
_LATER = (TransientRewardError, OutOfMemoryError)


class Odd:
    """No number, and nothing good comes of asking."""

    def __float__(self) -> float:
        raise RuntimeError("odd")

    def __repr__(self) -> str:
        raise ValueError("unsaid")


def attempt(rng: random.Random, folder: Path) -> None:
    """Score some responses with one function."""
    module = ModuleType(MODULE)
    module.score = _function(rng)  # type: ignore[attr-defined]
    sys.modules[MODULE] = module
    n_responses = rng.choice((1, 2, 3, 8))
    columns = {
        rng.choice(("task", "difficulty", "labels", "prompts", "self", "label", "x")): value(rng)
        for _ in range(rng.randint(0, 2))
    }
    prompt = [{"role": rng.choice(("user", "user", "system")), "content": text(rng)} for _ in range(rng.choice((1, 1, 2)))]
    responses = [
        ScoredResponse(f"p{i}", prompt, rng.choice((None, "4")), [1], [2, 3], text(rng), columns, step=i)
        for i in range(n_responses)
    ]
    outcome(lambda: _check(responses), [MODULE, "score"], (ConfigError, InfiniteRewardError, *_LATER))


def _check(responses: list[ScoredResponse]) -> None:
    rewards = ComposedReward([(PythonScorer(f"{MODULE}:score", limit_s=20.0), Weighing(1.0))]).score(responses)
    if len(rewards.total) != len(responses):
        raise Finding(f"{len(rewards.total)} rewards for {len(responses)} responses")
    if broken := [total for total in rewards.total if total is not None and not math.isfinite(total)]:
        raise Finding(f"rewards that are none: {broken}")
    if others := [total for total in rewards.total if total is not None and type(total) is not float]:
        raise Finding(f"rewards that are no floats: {others}")
    assert rewards.invalid_share or None not in rewards.total
    rewards.why_invalid()


def _function(rng: random.Random) -> Any:  # noqa: PLR0911 - a form each
    form = rng.randrange(8)
    returned = _returned(rng)
    if form == 0:
        return rng.choice((None, 3, "text", ModuleType("x"), int, len, print, max, Odd, _method, [].append))
    if form == 1:

        async def awaited(completions: Any, **columns: Any) -> Any:
            return returned(len(completions))

        return awaited
    if form == 2:
        return lambda prompts, responses, labels: returned(len(responses))
    if form == 3:
        return lambda prompts, completions, task: returned(len(completions))
    if form == 4:

        def generated(completions: Any, **columns: Any) -> Any:
            yield from returned(len(completions))

        return generated
    if form == 5:
        error = rng.choice(ERRORS)

        def raises(responses: Any, **columns: Any) -> Any:
            raise error("no", [ValueError("x")]) if error is ExceptionGroup else error(rng.choice(TEXTS))

        return raises
    return lambda completions, **columns: returned(len(completions))


def _method(self: Any) -> Any:
    return self


def _returned(rng: random.Random) -> Callable[[int], Any]:
    """A function of the number of responses that gives what somebody's function might return."""
    entries = [_entry(rng) for _ in range(8)]
    wrong = rng.choice((0, 0, 0, 0, 0, 0, 1, -1))
    kind = rng.randrange(10)
    wrap: Callable[[list[Any]], Any] = (
        rng.choice(
            (
                tuple,
                iter,
                dict.fromkeys,
                np.asarray,
                _tensor,
                str,
                lambda it: it[0] if it else None,
                lambda it: dict.fromkeys(it, it),
            )
        )
        if kind < 3
        else lambda it: it
    )
    if kind == 3:
        entries = [rng.choice((0.0, 1.0, -2.5, None)) for _ in range(8)]
    return lambda n: wrap(entries[: max(n + wrong, 0)])


def _tensor(entries: list[Any]) -> Any:
    return torch.tensor([entry if isinstance(entry, float) else 0.0 for entry in entries]).reshape(-1, 1)


def _entry(rng: random.Random) -> Any:
    number = rng.choice(
        (
            *NUMBERS,
            None,
            np.float32(0.5),
            np.int64(3),
            torch.tensor(1.0),
            torch.tensor([1.0, 2.0]),
            Decimal("0.1"),
            Fraction(1, 3),
            1j,
        )
    )
    how = rng.random()
    if how < 0.5:
        return number
    if how < 0.75:
        keys = ("score", "score", "reward", "format", "why", 3, None, "Score")
        return {rng.choice(keys): rng.choice((number, value(rng))) for _ in range(rng.randint(0, 3))}
    return rng.choice((value(rng), Odd(), object(), b"1", [number], float, AlignflowError("x")))
