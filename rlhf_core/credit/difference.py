"""Difference rewards: what a response is worth with a unit, less what it is worth without. Source: drca.md 7."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_core.credit.spans import Span


def token_rewards(
    n_tokens: int, units: Sequence[Span], full: float, without: Sequence[float], *, beta: float, last: int
) -> list[float]:
    """Rewards of `n_tokens` tokens: `beta` of each difference spread over its unit, 1 - `beta` of the whole at token `last`.

    They sum to beta * sum(full - without) + (1 - beta) * full. A response without units has all of `full` at its last token.
    """
    rewards = [0.0] * n_tokens
    for (start, end), worth in zip(units, without, strict=True):
        for t in range(start, end):
            rewards[t] += beta * (full - worth) / (end - start)
    rewards[last] += (1 - beta) * full if units else full
    return rewards
