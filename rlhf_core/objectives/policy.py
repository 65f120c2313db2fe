"""Policy-gradient losses, per token. Reduce them with `aggregate`; old log-probs, advantages and weights carry no gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rlhf_core.objectives.aggregation import masked, masked_mean, ratio

CorrectionKind = Literal["truncate", "mask", "sequence_mask"]


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """Per-token results [B, T], 0 outside the mask; `losses` alone carries a gradient.

    `clipped` is 1 where the bound decided the loss, `approx_kl` is old - new log-prob (nats): their token means are the
    clip fraction and the approximate KL from the policy that sampled.
    """

    losses: Tensor
    clipped: Tensor
    approx_kl: Tensor


def ppo_loss(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    advantages_BT: Tensor,
    mask_BT: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> PolicyLoss:
    """-min(ratio * A, clip(ratio, 1 - clip_low, 1 + clip_high) * A) (arXiv 1707.06347); clip-higher where the two differ.

    With `dual_clip` c > 1 the loss for A < 0 is at most -c * A (arXiv 1912.09729). `clip_low=1` with `clip_high=inf` clips
    nothing.
    """
    log_ratio, advantages = _log_ratio(logprobs_BT, old_logprobs_BT, mask_BT), masked(advantages_BT.detach(), mask_BT)
    return _clipped_surrogate(log_ratio, log_ratio, advantages, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)


def gspo_loss(
    logprobs_BT: Tensor, old_logprobs_BT: Tensor, advantages_BT: Tensor, mask_BT: Tensor, *, clip_low: float, clip_high: float
) -> PolicyLoss:
    """The clipped loss with one ratio a sequence, exp(mean token log-ratio) (GSPO, arXiv 2507.18071).

    Every valid token holds its sequence's loss; reduce with `sequence_mean`.
    """
    log_ratio, advantages = _log_ratio(logprobs_BT, old_logprobs_BT, mask_BT), masked(advantages_BT.detach(), mask_BT)
    sequence_log_ratio = masked_mean(log_ratio, mask_BT).unsqueeze(-1)
    return _clipped_surrogate(log_ratio, sequence_log_ratio, advantages, clip_low=clip_low, clip_high=clip_high, dual_clip=None)


def cispo_loss(
    logprobs_BT: Tensor, old_logprobs_BT: Tensor, advantages_BT: Tensor, mask_BT: Tensor, *, clip_high: float
) -> PolicyLoss:
    """-sg(min(ratio, 1 + clip_high)) * A * logprob: clipping bounds the weight, no token loses its gradient (arXiv 2506.13585)."""
    log_ratio, advantages = _log_ratio(logprobs_BT, old_logprobs_BT, mask_BT), masked(advantages_BT.detach(), mask_BT)
    ratios = ratio(log_ratio.detach())
    losses = -ratios.clamp(max=1 + clip_high) * advantages * masked(logprobs_BT, mask_BT)
    return PolicyLoss(losses, (ratios > 1 + clip_high).to(losses.dtype), -log_ratio.detach())


def reinforce_loss(logprobs_BT: Tensor, old_logprobs_BT: Tensor, advantages_BT: Tensor, mask_BT: Tensor) -> PolicyLoss:
    """-A * logprob: no ratio, so only the first update of a round is on policy, and nothing is clipped (Williams 1992)."""
    losses = -masked(advantages_BT.detach(), mask_BT) * masked(logprobs_BT, mask_BT)
    return PolicyLoss(losses, torch.zeros_like(losses), -_log_ratio(logprobs_BT, old_logprobs_BT, mask_BT).detach())


def rollout_correction(
    old_logprobs_BT: Tensor, rollout_logprobs_BT: Tensor, mask_BT: Tensor, kind: CorrectionKind, *, low: float, high: float
) -> Tensor:
    """Detached weights [B, T] for the gap between trainer and sampler, ratio = exp(old - rollout); 0 outside the mask.

    `truncate` clamps the ratio to [low, high] (TIS); `mask` sets tokens outside to 0 (IcePop); `sequence_mask` sets a whole
    sequence to 0 when the exp of its mean log-ratio is outside, and keeps the raw token ratios otherwise.
    """
    log_ratio = _log_ratio(old_logprobs_BT.detach(), rollout_logprobs_BT, mask_BT)
    weights = ratio(log_ratio)
    if kind == "truncate":
        weights = weights.clamp(low, high)
    else:
        judged = weights if kind == "mask" else ratio(masked_mean(log_ratio, mask_BT)).unsqueeze(-1)
        weights = torch.where((judged >= low) & (judged <= high), weights, 0.0)
    return masked(weights, mask_BT)


def _log_ratio(new: Tensor, old: Tensor, mask: Tensor) -> Tensor:
    return masked(new, mask) - masked(old.detach(), mask)


def _clipped_surrogate(
    token_log_ratio: Tensor, log_ratio: Tensor, advantages: Tensor, *, clip_low: float, clip_high: float, dual_clip: float | None
) -> PolicyLoss:
    """`log_ratio` [B, T] or [B, 1] weighs the advantages, which are 0 outside the mask and make the losses so."""
    ratios = ratio(log_ratio)
    plain, bounded = ratios * advantages, ratios.clamp(1 - clip_low, 1 + clip_high) * advantages
    losses = -torch.minimum(plain, bounded)
    if dual_clip is not None:
        losses = torch.where(advantages < 0, torch.minimum(losses, -dual_clip * advantages), losses)
    return PolicyLoss(losses, (bounded < plain).to(losses.dtype), -token_log_ratio.detach())
