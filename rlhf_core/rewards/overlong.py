"""What long answers pay, so that one that is cut loses by degrees and not all at once (DAPO, arXiv 2503.14476, section 3.4)."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_core.rewards.compose import Rewards
from rlhf_core.settings.online import OnlineConfig

PART = "overlong_penalty"


def with_penalties(rewards: Rewards, lengths_tokens: Sequence[int], config: OnlineConfig) -> Rewards:
    """The rewards of responses of these lengths with the penalty as one more part; the same where the settings ask for none."""
    factor: float = config.value("overlong_penalty.factor")
    if not factor:
        return rewards
    longest = config.rollout.max_new_tokens
    buffer = config.overlong_penalty.buffer_tokens or max(1, longest // 5)
    return rewards.with_part(PART, [overlong_penalty(length, longest, buffer, factor) for length in lengths_tokens])


def overlong_penalty(length_tokens: int, longest_tokens: int, buffer_tokens: int, factor: float) -> float:
    """0 up to `buffer_tokens` below the longest answer that can be, then down in a straight line to -factor."""
    return -factor * min(max((length_tokens - longest_tokens + buffer_tokens) / buffer_tokens, 0.0), 1.0)
