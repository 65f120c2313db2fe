"""Losses on preferred and rejected responses, per row [B], from summed response log-probs (nats). The caller takes the mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf_core.objectives.aggregation import AllSum, local_sum, widened

PreferenceKind = Literal["sigmoid", "robust", "hinge", "ipo", "ipo_sum"]

# Below every average log-prob that leaves room for other words; keeps log(1 - p) finite.
HIGHEST_LOGPROB = -1e-7


@dataclass(frozen=True, slots=True)
class PreferenceLoss:
    """Per-row results [B]; `losses` alone carries a gradient.

    The implicit rewards are beta * (policy - reference log-prob); `accuracy` is 1 where the chosen one is the larger.
    """

    losses: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor
    accuracy: Tensor


def preference_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    kind: PreferenceKind,
    beta: float,
    label_smoothing: float = 0.0,
) -> PreferenceLoss:
    """On the margin h of the two log-ratios policy - reference; log-probs [B] are sums, lengths [B] count their tokens.

    `sigmoid`: DPO (arXiv 2305.18290), with `label_smoothing` cDPO. `robust`: unbiased under that share of flipped labels
    (arXiv 2403.00409). `hinge`: SLiC (arXiv 2305.10425). `ipo`: (h - 1 / (2 beta))^2 with each log-ratio averaged over its
    length (arXiv 2310.12036); `ipo_sum` does not average. Only the first two read `label_smoothing`.
    """
    chosen = widened(policy_chosen_logps) - widened(ref_chosen_logps.detach())
    rejected = widened(policy_rejected_logps) - widened(ref_rejected_logps.detach())
    if kind == "ipo":
        margin = chosen / chosen_lengths.clamp(min=1) - rejected / rejected_lengths.clamp(min=1)
    else:
        margin = chosen - rejected
    losses = _margin_losses(margin, kind, beta, label_smoothing)
    chosen_rewards, rejected_rewards = beta * chosen.detach(), beta * rejected.detach()
    return PreferenceLoss(losses, chosen_rewards, rejected_rewards, (chosen_rewards > rejected_rewards).to(losses.dtype))


def _margin_losses(margin: Tensor, kind: PreferenceKind, beta: float, label_smoothing: float) -> Tensor:
    right, flipped = -logsigmoid(beta * margin), -logsigmoid(-beta * margin)
    if kind == "sigmoid":
        return (1 - label_smoothing) * right + label_smoothing * flipped
    if kind == "robust":
        return ((1 - label_smoothing) * right - label_smoothing * flipped) / (1 - 2 * label_smoothing)
    if kind == "hinge":
        return torch.relu(1 - beta * margin)
    return (margin - 1 / (2 * beta)).square()


def simpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: float,
    gamma: float,
) -> Tensor:
    """-log sigmoid(beta * (mean chosen - mean rejected log-prob) - gamma), [B]; needs no reference (arXiv 2405.14734)."""
    chosen, rejected = _length_means(policy_chosen_logps, policy_rejected_logps, chosen_lengths, rejected_lengths)
    return -logsigmoid(beta * (chosen - rejected) - gamma)


def orpo_loss(
    policy_chosen_logps: Tensor, policy_rejected_logps: Tensor, chosen_lengths: Tensor, rejected_lengths: Tensor, *, lam: float
) -> Tensor:
    """Mean token NLL of the chosen response + lam * -log sigmoid(log odds ratio), [B]; needs no reference (arXiv 2403.07691)."""
    chosen, rejected = _length_means(policy_chosen_logps, policy_rejected_logps, chosen_lengths, rejected_lengths)
    log_odds_ratio = (chosen - rejected) - (_log_complement(chosen) - _log_complement(rejected))
    return -chosen - lam * logsigmoid(log_odds_ratio)


def _length_means(chosen: Tensor, rejected: Tensor, chosen_lengths: Tensor, rejected_lengths: Tensor) -> tuple[Tensor, Tensor]:
    return widened(chosen) / chosen_lengths.clamp(min=1), widened(rejected) / rejected_lengths.clamp(min=1)


def _log_complement(logprob: Tensor) -> Tensor:
    """log(1 - exp(logprob)) for logprob <= 0, finite at 0."""
    return torch.log(-torch.expm1(logprob.clamp(max=HIGHEST_LOGPROB)))


def kto_reference(kl_logratios: Tensor, all_sum: AllSum = local_sum) -> Tensor:
    """The reference point z0 of KTO, a detached scalar: max(0, mean log-ratio of mismatched pairs), over all ranks.

    `kl_logratios` [M] are policy - reference log-probs of prompts with another prompt's response, of the whole batch.
    """
    ratios = widened(kl_logratios.detach())
    total, count = all_sum(torch.stack([ratios.sum(), torch.full_like(ratios.sum(), ratios.numel())]))
    mean: Tensor = total / count.clamp(min=1)
    return mean.clamp(min=0)


def kto_loss(
    policy_logps: Tensor,
    ref_logps: Tensor,
    desirable: Tensor,
    reference_point: Tensor,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """Losses [B] on single responses, desirable or not (arXiv 2402.01306), around the `reference_point` of `kto_reference`.

    Desirable: weight * (1 - sigmoid(beta * (log-ratio - z0))); undesirable: the same with the difference turned round.
    """
    log_ratio = widened(policy_logps) - widened(ref_logps.detach())
    difference = beta * (log_ratio - reference_point)
    gains = desirable_weight * torch.sigmoid(-difference)
    return torch.where(desirable.bool(), gains, undesirable_weight * torch.sigmoid(difference))
