"""Segments of a response, cut where a frozen language model was least sure of the next token, and what each of them earns.

Source: segment_reward.md. Plain numbers; models that give them are elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from rlhf_core.credit.positions import PositionFit
from rlhf_core.credit.spans import Span
from rlhf_core.settings.segments import DENSE_MODES, SegmentMode

# From this threshold on the whole response, its end token included, is one segment.
WHOLE = 1000.0
CLIP = 10.0  # of the reward of a token
LEAST_STD = 0.1  # that a reward is divided by


def segments(entropy: Sequence[float], n_tokens: int, threshold: float, *, ended: bool, start: int = 0) -> list[Span]:
    """Half-open spans that tile the tokens from `start` to before an end token; section 2.

    `entropy[t]` (nats) is that of the distribution that predicted token t; one opens at each token behind `start` whose entropy is more
    than `threshold`. From a threshold of `WHOLE` on, and where there is nothing else than the end token, all tokens are one.
    """
    end = n_tokens - ended
    if threshold >= WHOLE or end <= start:
        return [(0, n_tokens)]
    starts = [start, *(t for t in range(start + 1, end) if entropy[t] > threshold)]
    return list(zip(starts, [*starts[1:], end], strict=True))


def positions(n_segments: int) -> list[float]:
    """The share of the segments that is completed with each."""
    return [(k + 1) / n_segments for k in range(n_segments)]


def normalised(values: Sequence[float], fit: PositionFit | None, std_floor: float) -> list[float]:
    """Segment rewards less what is usual where they stand, in its deviations; as they are without a fit. Section 6."""
    if fit is None:
        return list(values)
    places = positions(len(values))
    return [(value - fit.mean(p)) / max(fit.std(p), std_floor) for value, p in zip(values, places, strict=True)]


def token_rewards(
    earned: Sequence[float], spans: Sequence[Span], n_tokens: int, mode: SegmentMode, *, divided_by: float = 1.0, tau: float = 1.0
) -> list[float]:
    """Rewards of all tokens, clipped to +-10, from what each segment has `earned`; section 7.

    Modes of a single number give it to the last token. `divided_by` is the response's length for the variant that is normed by it.
    """
    rewards = [0.0] * n_tokens
    if mode not in DENSE_MODES:
        whole = sum(earned) / len(earned) if mode == "segment_last_avg" else _log_sum_exp(earned, tau)
        rewards[-1] = whole
    for (start, end), value in zip(spans, earned, strict=True) if mode in DENSE_MODES else ():
        if mode == "every_segment_last":
            rewards[end - 1] = value
        else:
            rewards[start:end] = [value / (end - start) if mode == "segment_normalization" else value] * (end - start)
    return [min(max(value / divided_by, -CLIP), CLIP) for value in rewards]


def is_penalised(ended: bool, length_tokens: int, *, without_end: bool, limit_tokens: int | None) -> bool:
    """Whether a response gets a penalty in place of its reward: it does not end, or is longer than the limit. Section 8."""
    return (without_end and not ended) or (limit_tokens is not None and length_tokens > limit_tokens)


def penalty_rewards(penalty: float, n_tokens: int, mode: SegmentMode) -> list[float]:
    """What stands in place of its rewards: at every token, or at the last where the mode gives one number."""
    return [penalty] * n_tokens if mode in DENSE_MODES else [0.0] * (n_tokens - 1) + [penalty]


def _log_sum_exp(values: Sequence[float], tau: float) -> float:
    most = max(values)
    return most + tau * math.log(sum(math.exp((value - most) / tau) for value in values))
