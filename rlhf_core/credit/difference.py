"""Difference rewards: what a response is worth with a unit, less what it is worth without. Source: drca.md 7."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_core.credit.spans import Span


def unit_rewards(n_tokens: int, units: Sequence[Span], full: float, without: Sequence[float], *, beta: float) -> list[float]:
    """Rewards of `n_tokens` tokens: `beta` of each difference spread over its unit."""
    rewards = [0.0] * n_tokens
    for (start, end), worth in zip(units, without, strict=True):
        for t in range(start, end):
            rewards[t] += beta * (full - worth) / (end - start)
    return rewards


def kept_at_end(units: Sequence[Span], full: float, *, beta: float) -> float:
    """What the last token has on top: 1 - `beta` of the whole; all of it where there are no units.

    So a response earns beta * sum(full - without) + (1 - beta) * full in all.
    """
    return (1 - beta) * full if units else full
