"""How much likelier a plan makes a completion, and what that is worth. Source: vrcli.md, section 1."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence

from rlhf_core.settings.rewards.vr_cli import RewardMode

# Beyond it exp overflows; no completion is that unlikely under a model that was trained.
_MOST_NATS = 700.0


def perplexity(mean_nll_nats: float) -> float:
    """exp of the mean negative log-likelihood (nats a token)."""
    return math.exp(min(mean_nll_nats, _MOST_NATS))


def improvement_percent(baseline_nll_nats: float, plan_nll_nats: float) -> float:
    """100 (PPL - PPL with the plan) / PPL from mean negative log-likelihoods (nats a token); at most 100, without a lower bound.

    Not from perplexities: where the plan hardly changes anything their difference would be rounding.
    """
    return -100.0 * math.expm1(min(plan_nll_nats - baseline_nll_nats, _MOST_NATS))


def improvement_reward(percent: float, mode: RewardMode, cuts_percent: Sequence[float], levels: Sequence[float]) -> float:
    """What an improvement is worth.

    `thresholds`: the level of the highest cut that it reaches. `binary`: 1 from 0 on. `positive_part`, `negative_part`: it, at
    least or at most 0. `raw`: as it is. `positive_fraction`: the positive part as a fraction, not in per cent.
    """
    if mode == "thresholds":
        reached = bisect_right(cuts_percent, percent)
        return levels[reached - 1] if reached else 0.0
    if mode == "binary":
        return float(percent >= 0)
    if mode == "negative_part":
        return min(percent, 0.0)
    return percent if mode == "raw" else max(percent, 0.0) / (100.0 if mode == "positive_fraction" else 1.0)
