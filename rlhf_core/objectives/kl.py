"""Per-token estimates of the KL divergence from a reference, and rewards that carry it."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_core.methods.online import KlKind
from rlhf_core.objectives.aggregation import masked, ratio, widened


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, kind: KlKind, mask: Tensor | None = None) -> Tensor:
    """Estimate of KL(policy || reference) at each sampled token, nats, any shape; with gradient where `logprobs` has one.

    With d = logprobs - ref_logprobs: `k1` d, `k2` d^2 / 2, `k3` exp(-d) - 1 + d (Schulman, "Approximating KL divergence").
    The exponent of `k3` is bounded: finite for any input. With a `mask` it is 0 outside, whatever stands there.
    """
    mask = torch.ones_like(logprobs, dtype=torch.bool) if mask is None else mask
    difference = masked(logprobs, mask) - masked(ref_logprobs.detach(), mask)
    if kind == "k1":
        return difference
    if kind == "k2":
        return difference.square() / 2
    return ratio(-difference) - 1 + difference


def shape_rewards(scores_B: Tensor, kl_BT: Tensor, mask_BT: Tensor, kl_coef: float, score_clip: float | None = None) -> Tensor:
    """Token rewards [B, T], detached: -kl_coef * kl on every valid token, plus the score on the last valid one.

    Scores are clipped to +-`score_clip` where that is given. An empty sequence has no token to carry its score.
    """
    mask = mask_BT.bool()
    scores = widened(scores_B.detach())
    if score_clip is not None:
        scores = scores.clamp(-score_clip, score_clip)
    is_last = mask & (mask.flip(-1).cumsum(-1).flip(-1) == 1)
    return -kl_coef * masked(kl_BT.detach(), mask) + torch.where(is_last, scores.unsqueeze(-1), 0.0)
