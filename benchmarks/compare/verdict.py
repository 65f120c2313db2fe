"""From the steps of two arms to a ratio with its interval, and to whether the comparison holds at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from compare.duel import Running, Taken

TOLERANCE = 1e-4
RESAMPLES = 5000

Measure = Callable[[Running, Taken], float]


@dataclass(frozen=True)
class Target:
    """What must be reached: theirs divided by ours in `measure` is at least `bound`; without one it is only shown.

    Of several peers the one that is best in `measure` counts. A bound of 1.25 asks for at most 0.8 of what theirs takes.
    """

    criterion: str
    what: str
    ours: str
    theirs: tuple[str, ...]
    bound: float | None
    measure: str = "cpu_s"


@dataclass(frozen=True)
class OverheadLimit:
    """At most this share of `arm`'s steps may be neither generation nor gradient."""

    criterion: str
    what: str
    arm: str
    at_most: float


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> dict[str, float]:
    """Median over steps of theirs / ours for the same step, with a percentile bootstrap interval of 95 %."""
    values = np.asarray(theirs, dtype=np.float64) / np.asarray(ours, dtype=np.float64)
    n = len(values)
    draws = np.median(values[np.random.default_rng(0).integers(0, n, (RESAMPLES, n))], axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return {"median": float(np.median(values)), "low": float(low), "high": float(high), "n": n}


def loss_gap(one: Running, other: Running) -> float:
    """Largest difference of the two arms' losses over all steps, the dropped one included."""
    return max(abs(a - b) for a, b in zip(_losses(one), _losses(other), strict=True))


def _losses(run: Running) -> list[float]:
    losses = [run.first["loss"], *(taken.loss for taken in run.taken)]
    return [float("nan") if loss is None else float(loss) for loss in losses]


def judged(
    target: Target, runs: dict[str, Running], own_mib: float, sample_gaps: dict[str, float] | None = None
) -> dict[str, Any]:
    """The target with its measured ratio and a verdict: reached, missed, shown, or void where the arms disagree.

    Arms disagree where their losses do; where each samples its own rows, `sample_gaps` (nats, by peer) stand for that.
    """
    values = {name: [measured(runs[name], t, target.measure, own_mib) for t in runs[name].taken] for name in runs}
    best = min(target.theirs, key=lambda name: float(np.median(values[name])))
    found = ratio(values[best], values[target.ours])
    gap = loss_gap(runs[target.ours], runs[best]) if sample_gaps is None else sample_gaps.get(best)
    return {**asdict(target), "against": best, "ratio": found, "gap": gap, "verdict": _verdict(target, found, gap)}


def limited(limit: OverheadLimit, runs: dict[str, Running]) -> dict[str, Any]:
    """The limit with the measured share and a verdict."""
    value = overhead_share(runs[limit.arm])
    return {**asdict(limit), "value": value, "verdict": "reached" if value <= limit.at_most else "missed"}


def _verdict(target: Target, found: dict[str, float], gap: float | None) -> str:
    if gap is not None and not gap <= TOLERANCE:
        return "void"
    if target.bound is None:
        return "shown"
    return "reached" if found["median"] >= target.bound else "missed"


def overhead_share(run: Running) -> float:
    """Median share of an online step's wall time in which no actor generates or trains, one after the other; 0 to 1."""
    shares = [1.0 - (t.metrics["seconds/generate"] + t.metrics["policy/seconds"]) / t.wall_s for t in run.taken]
    return float(np.median(shares))


def measured(run: Running, taken: Taken, measure: str, own_mib: float) -> float:
    """CPU seconds, wall seconds, or peak memory over the libraries' and the model's own (MiB), of one step."""
    if measure == "over_own_mib":
        return taken.peak_mib - run.libraries_mib - own_mib
    value: float = getattr(taken, measure)
    return value
