"""The length of a response in tokens, as a reward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rlhf_core.rewards.base import ScoredResponse
from rlhf_core.settings.rewards.verifiers import LengthReward

if TYPE_CHECKING:
    from rlhf_core.rewards.build import Around


class LengthScorer:
    """1 from `min_tokens` to `max_tokens`, outside in a straight line down to 0 where `buffer_tokens` are over."""

    name = "length"

    def __init__(self, min_tokens: int, max_tokens: int, buffer_tokens: int) -> None:
        self._min, self._max, self._buffer = min_tokens, max_tokens, buffer_tokens

    def score(self, responses: Sequence[ScoredResponse]) -> list[float]:
        """In [0, 1], by the number of tokens that were sampled."""
        return [self._worth(len(response.response_ids)) for response in responses]

    def _worth(self, tokens: int) -> float:
        outside = max(self._min - tokens, tokens - self._max, 0)
        return max(1.0 - outside / self._buffer, 0.0) if self._buffer else float(not outside)


def build(source: LengthReward, around: Around) -> LengthScorer:
    """From settings."""
    return LengthScorer(source.min_tokens, source.max_tokens, source.buffer_tokens)
