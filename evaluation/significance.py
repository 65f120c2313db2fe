"""Which differences count: p-values corrected for the number of candidates, and what a comparison could have found."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from evaluation.bootstrap import Draws, Floats
from evaluation.config import CompareConfig
from evaluation.scores import Better

Judgement = Literal["better", "worse", "no difference", "too few prompts"]
# A difference of the size that is named as detectable is found in four of five comparisons like this one.
POWER = 0.8


@dataclass(frozen=True, slots=True)
class Judged:
    """One model against the baseline on the metric that decides.

    `p` is two-sided; `corrected_p` is Holm's over the candidates, and is what decides. `detectable` is the size of a true gain
    that is found with 80 % probability; None where all prompts differ by the same, which tells nothing about it.
    """

    judgement: Judgement
    p: float
    corrected_p: float
    detectable: float | None
    n: int

    def to_json(self) -> dict[str, Any]:
        """The fields as a JSON object."""
        return asdict(self)


def judge(
    differences: Mapping[str, Draws], better: Better, candidates: Collection[str], config: CompareConfig
) -> dict[str, Judged]:
    """A judgement of each model's difference to the baseline.

    The candidates are corrected for one another: one of them may become challenger. Other models stand for themselves.
    """
    family = [name for name in differences if name in candidates]
    corrected = dict(zip(family, holm(np.array([two_sided(differences[name]) for name in family])), strict=True))
    return {
        name: _judged(draws, better, corrected.get(name, two_sided(draws)), len(family) if name in family else 1, config)
        for name, draws in differences.items()
    }


def holm(p_values: Floats) -> Floats:
    """Holm's step-down correction of `p_values[k, ...]` over the first axis (Holm 1979)."""
    k = len(p_values)
    order = np.argsort(p_values, axis=0)
    factors = np.arange(k, 0, -1.0).reshape(k, *[1] * (p_values.ndim - 1))
    stepped = np.maximum.accumulate(np.take_along_axis(p_values, order, axis=0) * factors, axis=0)
    corrected = np.empty_like(stepped)
    np.put_along_axis(corrected, order, np.minimum(stepped, 1.0), axis=0)
    return corrected


def two_sided(draws: Draws) -> Floats:
    """The p-value of no difference, either way: `[columns]`."""
    return np.minimum(2.0 * np.minimum(draws.p_above(), draws.p_below()), 1.0)


def _judged(draws: Draws, better: Better, corrected: Floats, family: int, config: CompareConfig) -> Judged:
    upwards = better == "higher"
    tail = (1.0 - config.confidence) / 2.0 / family
    detectable = float(draws.detectable(tail, POWER, upwards=upwards)[0])
    return Judged(
        judgement=_judgement(draws, float(corrected[0]), upwards, config),
        p=float(two_sided(draws)[0]),
        corrected_p=float(corrected[0]),
        detectable=detectable if detectable > 0 else None,
        n=draws.n,
    )


def _judgement(draws: Draws, corrected_p: float, upwards: bool, config: CompareConfig) -> Judgement:
    if draws.n < config.min_prompts:
        return "too few prompts"
    # Levels such as 1 - 0.95 are off by a rounding.
    if corrected_p > 1.0 - config.confidence + 1e-9:
        return "no difference"
    return "better" if (draws.mean[0] > 0.0) == upwards else "worse"
