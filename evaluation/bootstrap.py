"""Intervals and tests of means and of paired differences, by resampling: numbers in, numbers out.

A unit (a prompt, a held-out row) gives one number, and units are what is resampled. A ratio metric (nats a token) is the
weighted mean of a value a unit; it and the geometric mean are made linear at their estimate, so that what remains is the
mean of `n` numbers (the delta method). Two kinds of draws say where that mean may lie:

- Weights from a flat Dirichlet distribution over the units and one more that was not seen and lies as far out as it could
  (Gaffke 2005; see Learned-Miller and Thomas, arXiv:1905.06208). With values between known bounds the unit lies on the
  bound, and the interval is that of Clopper and Pearson for shares and the exact sign test for wins and losses. Without
  bounds it lies `_BEYOND / n` times the distance from median to outermost value beyond that value: far enough for the
  tests' simulation to hold with strongly skewed differences from 8 units on, and without effect as n grows.
- Without bounds also the mean of the units that a coin takes (Hartigan 1969), which inverts the sign-flip test of the mean:
  exact for any n where differences are symmetric, as they are between two models that answer alike. An end of an interval is
  then the farther of both kinds.

Draws are seeded: the same numbers give the same interval, whatever the order in which models or metrics are computed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from data_processing.errors import DataError

Floats = NDArray[np.float64]

# Weights held at once: bounds memory at a few tens of MB for any number of units.
_CELLS_AT_ONCE = 1 << 20
_BEYOND = 32.0


@dataclass(frozen=True, slots=True)
class Interval:
    """A statistic with the ends of its interval, in the metric's own unit, and the number of units behind it.

    Units that are all equal say nothing about spread: without bounds `low` and `high` are then equal to `mean`.
    """

    mean: float
    low: float
    high: float
    n: int

    def to_json(self) -> dict[str, float | int]:
        """The four fields as a JSON object."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Bounds:
    """The least and the largest value that one unit can have; None where there is no limit."""

    lowest: float | None = None
    highest: float | None = None

    @property
    def complete(self) -> bool:
        """Whether values are bounded on both sides."""
        return self.lowest is not None and self.highest is not None

    def difference(self) -> Bounds:
        """The bounds of the difference of two such values."""
        if self.lowest is None or self.highest is None:
            return Bounds()
        return Bounds(self.lowest - self.highest, self.highest - self.lowest)


UNBOUNDED = Bounds()


@dataclass(frozen=True)
class Resampling:
    """How intervals are drawn: number of resamples, level (0.95: 2.5 % beyond either end), seed."""

    resamples: int = 2000
    confidence: float = 0.95
    seed: int = 0

    def blocks(self, n: int) -> Iterator[slice]:
        """The rows of the resamples that are drawn at once, `resamples` in all."""
        size = max(1, _CELLS_AT_ONCE // n)
        for start in range(0, self.resamples, size):
            yield slice(start, min(start + size, self.resamples))

    def draws(self, values: Floats, bounds: Bounds = UNBOUNDED) -> Draws:
        """Draws of the means of the columns of `values[n, columns]`; columns share weights and are otherwise apart."""
        n, columns = values.shape
        # Centred values: a shift of all values shifts the draws exactly, and equal values give a zero width.
        centre = values[0]
        terms = values - centre
        lowest, highest = (end - centre for end in _unseen(values, bounds))
        kinds = 1 if bounds.complete else 2
        below, above = np.empty((2, kinds, self.resamples, columns))
        dirichlet, coins = (np.random.default_rng([self.seed, kind]) for kind in (0, 1))
        for rows in self.blocks(n):
            # Exponential weights over their sum have a flat Dirichlet distribution; the first is that of the unseen unit.
            exponentials = dirichlet.standard_exponential((rows.stop - rows.start, n + 1))
            unseen, total = exponentials[:, :1], exponentials.sum(axis=1, keepdims=True)
            seen = exponentials[:, 1:] @ terms
            below[0, rows], above[0, rows] = (seen + unseen * lowest) / total, (seen + unseen * highest) / total
            if not bounds.complete:
                heads = (coins.random((rows.stop - rows.start, n), dtype=np.float32) < 0.5).astype(np.float64)
                taken = heads.sum(axis=1, keepdims=True)
                half = (heads @ terms) / np.maximum(taken, 1.0)
                # No unit taken is no sign flipped, which speaks against no mean whatever.
                below[1, rows], above[1, rows] = np.where(taken, half, -np.inf), np.where(taken, half, np.inf)
        # Sums in another order differ in the last digits: what may be a tie counts as one.
        spread = np.ptp(terms, axis=0)
        tie = np.where(spread > 0, 1e-12 * spread + 1e-15 * np.abs(centre), 0.0)
        return Draws(values, bounds, self, below + (centre - tie), above + (centre + tie), (lowest + centre, highest + centre))


@dataclass(frozen=True)
class Draws:
    """Where the means of the columns of `values[n, columns]` may lie: draws `[kinds, resamples, columns]`, `below` for the lower
    ends of intervals and `above` for the upper ones; `ends[columns]` are the least and the largest a mean can be taken for.

    What no unit shows and no bounds limit is not covered: a loss that 19 of 20 samples have no unit of, for example.
    """

    values: Floats
    bounds: Bounds
    resampling: Resampling
    below: Floats
    above: Floats
    ends: tuple[Floats, Floats]

    @property
    def n(self) -> int:
        """How many units there are."""
        return len(self.values)

    @property
    def mean(self) -> Floats:
        """The means `[columns]`."""
        return np.asarray(self.values.mean(axis=0), dtype=np.float64)

    def low(self, tail: float) -> Floats:
        """The lower ends `[columns]` of the intervals with probability `tail` below them."""
        rank = self._rank(tail) - 1
        end = np.partition(self.below, rank, axis=1)[:, rank].min(axis=0)
        return np.asarray(np.minimum(np.maximum(end, self.ends[0]), self.mean), dtype=np.float64)

    def high(self, tail: float) -> Floats:
        """The upper ends `[columns]` of the intervals with probability `tail` above them."""
        rank = self.above.shape[1] - self._rank(tail)
        end = np.partition(self.above, rank, axis=1)[:, rank].max(axis=0)
        return np.asarray(np.maximum(np.minimum(end, self.ends[1]), self.mean), dtype=np.float64)

    def p_above(self) -> Floats:
        """One-sided p-values `[columns]` of means that are not above 0: at most `tail` where `low(tail)` is above 0."""
        return self._p(self.below <= 0.0)

    def p_below(self) -> Floats:
        """One-sided p-values `[columns]` of means that are not below 0."""
        return self._p(self.above >= 0.0)

    def detectable(self, tail: float, power: float, *, upwards: bool) -> Floats:
        """The sizes `[columns]` of a true mean that a test at level `tail` finds with probability `power`, as the units vary."""
        chance = NormalDist().inv_cdf(power) * self.values.std(axis=0, ddof=min(1, self.n - 1)) / math.sqrt(self.n)
        centred, sign = self.values - self.mean, 1.0 if upwards else -1.0
        size = chance
        # The farther the mean is from a bound, the more one unit on it could take away: a fixed point, reached quickly.
        for _ in range(1 if self.bounds == UNBOUNDED else 4):
            moved = self.resampling.draws(centred + sign * size, self.bounds)
            size = chance + size - sign * (moved.low(tail) if upwards else moved.high(tail))
        return np.asarray(size, dtype=np.float64)

    def interval(self, confidence: float) -> Interval:
        """The interval of the first column."""
        tail = (1.0 - confidence) / 2.0
        return Interval(float(self.mean[0]), float(self.low(tail)[0]), float(self.high(tail)[0]), self.n)

    def _rank(self, tail: float) -> int:
        return max(1, math.floor(tail * (int(self.below.shape[1]) + 1) + 1e-9))

    def _p(self, reached: NDArray[np.bool_]) -> Floats:
        return np.asarray((1 + reached.sum(axis=1)).max(axis=0) / (1 + self.below.shape[1]), dtype=np.float64)


def mean_interval(
    values: Floats,
    resampling: Resampling,
    *,
    weights: Floats | None = None,
    geometric: bool = False,
    bounds: Bounds = UNBOUNDED,
) -> Interval:
    """The (weighted, geometric) mean of `values[n]` over units, with its interval; `bounds` hold for unweighted values.

    Raises `DataError` on no units, a value that is not finite, a geometric mean of values not above 0, or weights that
    are negative or sum to 0.
    """
    units = _linear(values, weights, geometric)
    plain = weights is None and not geometric
    interval = resampling.draws(units[:, None], bounds if plain else UNBOUNDED).interval(resampling.confidence)
    if not geometric:
        return interval
    return Interval(math.exp(interval.mean), math.exp(interval.low), math.exp(interval.high), interval.n)


def paired_draws(
    candidate: Floats,
    baseline: Floats,
    resampling: Resampling,
    *,
    candidate_weights: Floats | None = None,
    baseline_weights: Floats | None = None,
    geometric: bool = False,
    bounds: Bounds = UNBOUNDED,
) -> Draws:
    """Draws of the statistic of `candidate[n]` minus that of `baseline[n]`; index i is the same unit in both.

    `bounds` are those of one value. Raises `DataError` as `mean_interval` does, and where the two have different lengths.
    """
    ours = _linear(candidate, candidate_weights, geometric)
    theirs = _linear(baseline, baseline_weights, geometric)
    if len(ours) != len(theirs):
        raise DataError(f"paired interval: {len(ours)} units against {len(theirs)}; pairs need the same units in the same order")
    if geometric:
        ours, theirs = _exponential(ours), _exponential(theirs)
    plain = candidate_weights is None and baseline_weights is None and not geometric
    return resampling.draws((ours - theirs)[:, None], bounds.difference() if plain else UNBOUNDED)


def _unseen(values: Floats, bounds: Bounds) -> tuple[Floats, Floats]:
    """The least and the largest value `[columns]` that one more unit could have had."""
    least, middle, most = values.min(axis=0), np.median(values, axis=0), values.max(axis=0)
    beyond = _BEYOND / len(values)
    low = least - beyond * (middle - least) if bounds.lowest is None else np.minimum(least, bounds.lowest)
    high = most + beyond * (most - middle) if bounds.highest is None else np.maximum(most, bounds.highest)
    return np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)


def _linear(values: Floats, weights: Floats | None, geometric: bool) -> Floats:
    """One number a unit `[n]` whose plain mean is the weighted mean of the values (of their logarithms, if geometric)."""
    values = np.asarray(values, dtype=np.float64)
    weights = None if weights is None else np.asarray(weights, dtype=np.float64)
    _check(values, weights, geometric)
    terms = np.log(values) if geometric else values
    if weights is None:
        return terms
    # Centred, so that equal values stay equal.
    shifted = terms - terms[0]
    mean = (weights * shifted).sum() / weights.sum()
    return np.asarray(terms[0] + mean + len(terms) * weights * (shifted - mean) / weights.sum(), dtype=np.float64)


def _exponential(logs: Floats) -> Floats:
    """One number a unit whose mean is the exponential of the mean of `logs[n]`, to first order in their spread."""
    mean = logs.mean()
    return np.asarray(np.exp(mean) * (1.0 + logs - mean), dtype=np.float64)


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
