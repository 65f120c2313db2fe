"""How one source enters the sum of rewards: its weight, which may change over a run, and whether its numbers are put on one scale."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

# Added to deviations, so that equal rewards become 0.
EPSILON = 1e-6


@dataclass(frozen=True, slots=True)
class Weighing:
    """`weight` in the first round and `final_weight` in the last, None for the same; `normalise` as in the settings."""

    weight: float
    final_weight: float | None = None
    normalise: Literal["group", "running"] | None = None

    def at(self, share: float) -> float:
        """The weight when `share` of the rounds, 0 to 1, is over."""
        return self.weight + ((self.weight if self.final_weight is None else self.final_weight) - self.weight) * share


@dataclass
class Running:
    """Number, mean and sum of squared deviations of all values so far (Welford 1962)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, values: Sequence[float]) -> None:
        """Take these into account."""
        for value in values:
            self.count += 1
            delta = value - self.mean
            self.mean += delta / self.count
            self.squares += delta * (value - self.mean)

    def scaled(self, value: float) -> float:
        """Less the mean, and divided by the deviation."""
        return (value - self.mean) / (math.sqrt(self.squares / max(self.count, 1)) + EPSILON)


@dataclass
class Scale:
    """Puts the numbers of one source on the scale that its weighing asks for; what is no number (None, NaN) stays."""

    weighing: Weighing
    running: Running = field(default_factory=Running)

    def __call__(self, values: Sequence[float | None], prompt_ids: Sequence[str]) -> list[float | None]:
        """One value a response, those to a prompt told by its id."""
        kind = self.weighing.normalise
        if kind is None:
            return list(values)
        groups: dict[str, Running] = defaultdict(Running)
        for value, prompt_id in zip(values, prompt_ids, strict=True):
            if value is not None and not math.isnan(value):
                (self.running if kind == "running" else groups[prompt_id]).add([value])
        return [
            value if value is None else (self.running if kind == "running" else groups[prompt_id]).scaled(value)
            for value, prompt_id in zip(values, prompt_ids, strict=True)
        ]

    def kept(self, values: Sequence[float | None]) -> list[float | None]:
        """The same by the statistics of all responses so far, which these leave as they are; for sources that no group is asked of."""
        if self.weighing.normalise is None:
            return list(values)
        assert self.weighing.normalise == "running", "a single response has no group"
        return [value if value is None else self.running.scaled(value) for value in values]
