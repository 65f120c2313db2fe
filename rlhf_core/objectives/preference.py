"""Losses on preferred and rejected responses, per row [B], from summed response log-probs (nats). The caller takes the mean."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf_core.objectives.aggregation import AllSum, local_sum, widened

# Below every average log-prob that leaves room for other words; keeps log(1 - p) finite.
HIGHEST_LOGPROB = -1e-7


@dataclass(frozen=True, slots=True)
class Pairs:
    """What a loss on B pairs may read, each [B].

    Summed log-probs (nats) of the responses under the policy and under the reference (0 for a method that needs none), their
    lengths in tokens, and by how much the chosen one is the better (0 where the data do not say).
    """

    chosen: Tensor
    rejected: Tensor
    reference_chosen: Tensor
    reference_rejected: Tensor
    chosen_lengths: Tensor
    rejected_lengths: Tensor
    margins: Tensor

    @property
    def log_ratios(self) -> tuple[Tensor, Tensor]:
        """Policy - reference, of the chosen and of the rejected responses."""
        chosen = widened(self.chosen) - widened(self.reference_chosen.detach())
        return chosen, widened(self.rejected) - widened(self.reference_rejected.detach())

    @property
    def margin(self) -> Tensor:
        """h: how much more than the reference the policy prefers the chosen response."""
        chosen, rejected = self.log_ratios
        return chosen - rejected

    @property
    def mean_margin(self) -> Tensor:
        """h with each log-ratio averaged over the tokens of its response."""
        return self._mean_difference(*self.log_ratios)

    @property
    def mean_logps(self) -> tuple[Tensor, Tensor]:
        """Log-probs a token under the policy, of the chosen and of the rejected responses."""
        return (
            widened(self.chosen) / self.chosen_lengths.clamp(min=1),
            widened(self.rejected) / self.rejected_lengths.clamp(min=1),
        )

    def _mean_difference(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        return chosen / self.chosen_lengths.clamp(min=1) - rejected / self.rejected_lengths.clamp(min=1)


def dpo_loss(pairs: Pairs, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """-log sigmoid(beta h) (arXiv 2305.18290); with `label_smoothing` cDPO, which takes that share of labels for flipped."""
    return _smoothed(beta * pairs.margin, label_smoothing)


def dpo_norm_loss(pairs: Pairs, *, beta: float) -> Tensor:
    """DPO on log-ratios averaged over the tokens of their responses (arXiv 2411.15124, section 5.1)."""
    return -logsigmoid(beta * pairs.mean_margin)


def robust_loss(pairs: Pairs, *, beta: float, label_smoothing: float) -> Tensor:
    """DPO, unbiased under that share of flipped labels (arXiv 2403.00409)."""
    right, flipped = -logsigmoid(beta * pairs.margin), -logsigmoid(-beta * pairs.margin)
    return ((1 - label_smoothing) * right - label_smoothing * flipped) / (1 - 2 * label_smoothing)


def hinge_loss(pairs: Pairs, *, beta: float) -> Tensor:
    """max(0, 1 - beta h) (SLiC, arXiv 2305.10425)."""
    return torch.relu(1 - beta * pairs.margin)


def ipo_loss(pairs: Pairs, *, beta: float) -> Tensor:
    """(h - 1 / (2 beta))^2 with each log-ratio averaged over its length (arXiv 2310.12036)."""
    return (pairs.mean_margin - 1 / (2 * beta)).square()


def ipo_sum_loss(pairs: Pairs, *, beta: float) -> Tensor:
    """(h - 1 / (2 beta))^2, nothing averaged."""
    return (pairs.margin - 1 / (2 * beta)).square()


def simpo_loss(pairs: Pairs, *, beta: float, gamma: float) -> Tensor:
    """-log sigmoid(beta * (mean chosen - mean rejected log-prob) - gamma); needs no reference (arXiv 2405.14734)."""
    chosen, rejected = pairs.mean_logps
    return -logsigmoid(beta * (chosen - rejected) - gamma)


def orpo_loss(pairs: Pairs, *, lam: float) -> Tensor:
    """Mean token NLL of the chosen response + lam * -log sigmoid(log odds ratio); needs no reference (arXiv 2403.07691)."""
    chosen, rejected = pairs.mean_logps
    log_odds_ratio = (chosen - rejected) - (_log_complement(chosen) - _log_complement(rejected))
    return -chosen - lam * logsigmoid(log_odds_ratio)


def cpo_loss(pairs: Pairs, *, beta: float) -> Tensor:
    """-log sigmoid(beta * (chosen - rejected log-prob)): DPO under a uniform reference (arXiv 2401.08417)."""
    return -logsigmoid(beta * (widened(pairs.chosen) - widened(pairs.rejected)))


def _smoothed(scaled_margin: Tensor, label_smoothing: float) -> Tensor:
    return -(1 - label_smoothing) * logsigmoid(scaled_margin) - label_smoothing * logsigmoid(-scaled_margin)


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
