"""Bootstrap intervals of means and of paired differences: numbers in, numbers out.

A statistic is the weighted mean of one value a unit (a prompt, a held-out row); units are what is resampled. Ratio
metrics (nats a token, perplexity) are weighted means too: value a token, weighted by the unit's tokens. A geometric
mean is the exponential of the weighted mean of logarithms. Intervals are percentile intervals from a seeded generator:
the same numbers give the same interval, whatever the order in which models or metrics are computed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from data_processing.errors import DataError

Floats = NDArray[np.float64]

# Resampled cells held at once: bounds memory at a few tens of MB for any number of units.
_CELLS_AT_ONCE = 1 << 21


@dataclass(frozen=True, slots=True)
class Interval:
    """A statistic with the ends of its interval, in the metric's own unit, and the number of units behind it.

    One unit says nothing about spread: `low` and `high` are then equal to `mean`, and `n` is 1.
    """

    mean: float
    low: float
    high: float
    n: int

    def to_json(self) -> dict[str, float | int]:
        """The four fields as a JSON object."""
        return asdict(self)


@dataclass(frozen=True)
class Resampling:
    """How intervals are drawn: number of resamples, level (0.95: the central 95 %), seed."""

    resamples: int = 2000
    confidence: float = 0.95
    seed: int = 0

    def interval(self, mean: float, draws: Floats, n: int) -> Interval:
        """The central share `confidence` of `draws[resamples]`, as an interval around `mean`."""
        tail = (1.0 - self.confidence) / 2.0
        low, high = np.quantile(draws, [tail, 1.0 - tail])
        return Interval(mean=mean, low=float(low), high=float(high), n=n)

    def indices(self, n: int) -> Iterator[NDArray[np.int64]]:
        """Seeded draws with replacement: blocks `[some resamples, n]` of unit indices, `resamples` rows in all."""
        generator = np.random.default_rng(self.seed)
        rows = max(1, _CELLS_AT_ONCE // n)
        for start in range(0, self.resamples, rows):
            yield generator.integers(0, n, size=(min(rows, self.resamples - start), n))


def mean_interval(values: Floats, resampling: Resampling, *, weights: Floats | None = None, geometric: bool = False) -> Interval:
    """The (weighted, geometric) mean of `values[n]` over units, with its bootstrap interval.

    Raises `DataError` on no units, a value that is not finite, a geometric mean of values not above 0, or weights that
    are negative or sum to 0.
    """
    statistic = _Statistic(values, weights, geometric)
    draws = np.concatenate([statistic.at(index) for index in resampling.indices(statistic.n)])
    return resampling.interval(statistic.value(), draws, statistic.n)


def paired_interval(
    candidate: Floats,
    baseline: Floats,
    resampling: Resampling,
    *,
    candidate_weights: Floats | None = None,
    baseline_weights: Floats | None = None,
    geometric: bool = False,
) -> Interval:
    """Statistic of `candidate[n]` minus that of `baseline[n]`; index i is the same unit in both and is drawn together.

    Raises `DataError` as `mean_interval` does, and where the two have different lengths.
    """
    ours = _Statistic(candidate, candidate_weights, geometric)
    theirs = _Statistic(baseline, baseline_weights, geometric)
    if ours.n != theirs.n:
        raise DataError(f"paired interval: {ours.n} units against {theirs.n}; pairs need the same units in the same order")
    draws = np.concatenate([ours.at(index) - theirs.at(index) for index in resampling.indices(ours.n)])
    return resampling.interval(ours.value() - theirs.value(), draws, ours.n)


class _Statistic:
    """A weighted mean as two sums a unit, so that any resample of units is a ratio of two sums."""

    def __init__(self, values: Floats, weights: Floats | None, geometric: bool) -> None:
        values = np.asarray(values, dtype=np.float64)
        self.geometric = geometric
        self.denominator = None if weights is None else np.asarray(weights, dtype=np.float64)
        _check(values, self.denominator, geometric)
        terms = np.log(values) if geometric else values
        # Centred terms: a shift of all values shifts the statistic exactly, and equal values give a zero width.
        self.centre = float(terms[0])
        self.numerator = (terms - self.centre) * (1.0 if self.denominator is None else self.denominator)
        self.n = len(values)

    def value(self) -> float:
        return float(self.at(np.arange(self.n)[None, :])[0])

    def at(self, index: NDArray[np.int64]) -> Floats:
        """The statistic of each resample `index[r, n]`: `[r]`."""
        total = self.numerator[index].sum(axis=1)
        # A resample that drew only units of weight 0 says nothing beyond the centre.
        weight = np.float64(self.n) if self.denominator is None else self.denominator[index].sum(axis=1)
        mean = self.centre + np.divide(total, weight, out=np.zeros_like(total), where=weight > 0)
        return np.asarray(np.exp(mean) if self.geometric else mean, dtype=np.float64)


def _check(values: Floats, weights: Floats | None, geometric: bool) -> None:
    if values.ndim != 1 or len(values) == 0:
        raise DataError(f"bootstrap: values of shape {values.shape}; expected at least one value a unit, in one dimension")
    if not np.isfinite(values).all():
        unit = int(np.argmin(np.isfinite(values)))
        raise DataError(f"bootstrap: unit {unit} has value {values[unit]}; values must be finite")
    if geometric and not (values > 0).all():
        raise DataError(f"bootstrap: a geometric mean needs values above 0, got {values.min()}")
    if weights is None:
        return
    if weights.shape != values.shape or not math.isfinite(float(weights.sum())):
        raise DataError(
            f"bootstrap: weights of shape {weights.shape} for values of shape {values.shape}; one finite weight a unit"
        )
    if weights.min() < 0 or weights.sum() <= 0:
        raise DataError(
            f"bootstrap: weights between {weights.min()} and {weights.max()}; none may be negative, one must be above 0"
        )
