"""Several sources of reward, weighted and summed; what each gave is kept beside the sum."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data_processing.errors import DivergedError
from rlhf_core.rewards.base import ScoredResponse, Scorer


class InvalidRewardError(DivergedError):
    """A source gave NaN or an infinite number; the message names source, response and value."""


@dataclass(frozen=True)
class Rewards:
    """`total[i]` is the weighted sum for response i, `by_source[name][i]` what a source gave before weighting."""

    total: list[float]
    by_source: Mapping[str, list[float]]


class ComposedReward:
    """A weighted sum of scorers; a name that repeats gets a number (`length`, `length_2`)."""

    def __init__(self, scorers: Sequence[tuple[Scorer, float]]) -> None:
        names = [scorer.name for scorer, _ in scorers]
        repeats = [names[:i].count(name) for i, name in enumerate(names)]
        unique = [f"{name}_{n + 1}" if n else name for name, n in zip(names, repeats, strict=True)]
        self._sources = [(name, scorer, weight) for name, (scorer, weight) in zip(unique, scorers, strict=True)]

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines for people on how the sources work, from those that have any."""
        return tuple(note for _, scorer, _ in self._sources for note in getattr(scorer, "notes", ()))

    def score(self, responses: Sequence[ScoredResponse]) -> Rewards:
        """Ask every source. Raises `InvalidRewardError` for a number that is not finite: an error is not a reward."""
        by_source = {name: scorer.score(responses) for name, scorer, _ in self._sources}
        for name, values in by_source.items():
            _check_finite(name, values, responses)
        total = [sum(weight * by_source[name][i] for name, _, weight in self._sources) for i in range(len(responses))]
        return Rewards(total, by_source)


def _check_finite(name: str, values: Sequence[float], responses: Sequence[ScoredResponse]) -> None:
    for value, response in zip(values, responses, strict=True):
        if not math.isfinite(value):
            raise InvalidRewardError(
                f"reward '{name}' gave {value} for prompt {response.prompt_id}, response {response.text[:200]!r}:"
                " every response needs a finite number; fix the reward, it is not replaced by 0"
            )
