"""What rewards of many responses say of rare bad ones: their share, and how bad the worst are. Source: repulse.md, sections 4.2 and 6.

Scores are stored first, and thresholds chosen later: numbers in, numbers out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from statistics import stdev

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from evaluation.bootstrap import Interval

Floats = NDArray[np.float64]


def bad_share(rewards: Sequence[float], threshold: float, confidence: float = 0.95) -> Interval:
    """The share of rewards below the threshold, strictly, with the exact binomial interval (Clopper and Pearson 1934).

    The responses count as independent draws: with several to a prompt it is too narrow where prompts differ much.
    """
    bad, n = sum(reward < threshold for reward in rewards), len(rewards)
    found = stats.binomtest(bad, n).proportion_ci(confidence, method="exact")
    return Interval(bad / n, float(found.low), float(found.high), n)


def cvar(rewards: Sequence[float], fraction: float) -> float:
    """Conditional value at risk: the mean of the lowest `fraction` of the rewards, of at least one. Higher is better."""
    worst = np.sort(np.asarray(rewards, dtype=np.float64))[: max(1, math.floor(fraction * len(rewards)))]
    return float(worst.mean())


def over_seeds(values: Sequence[float], *, resamples: int = 5000, confidence: float = 0.95, seed: int = 0) -> Interval:
    """The mean over seeds, with the percentile interval of its bootstrap: every resample where they are no more than `resamples`."""
    own, n = np.asarray(values, dtype=np.float64), len(values)
    if n**n <= resamples:
        drawn = np.array(list(itertools.product(range(n), repeat=n)))
    else:
        drawn = np.random.default_rng(seed).integers(n, size=(resamples, n))
    tail = (1 - confidence) / 2
    low, high = np.quantile(own[drawn].mean(axis=1), (tail, 1 - tail)).tolist()
    return Interval(float(own.mean()), low, high, n)


def t_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """The mean over seeds +- t sd / sqrt(n), sd with n - 1; infinite for a single one."""
    n, mean = len(values), math.fsum(values) / len(values)
    half = t_quantile(n, confidence) * stdev(values) / math.sqrt(n) if n > 1 else math.inf
    return Interval(mean, mean - half, mean + half, n)


def t_quantile(n: int, confidence: float = 0.95) -> float:
    """Of Student's distribution with n - 1 degrees of freedom."""
    return float(stats.t.ppf((1 + confidence) / 2, n - 1))
