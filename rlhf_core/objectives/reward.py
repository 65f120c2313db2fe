"""The losses of reward models: on pairs, per row [B], and on judged steps; and how the credit of segments is spread."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from rlhf_core.objectives.aggregation import widened


def pairwise_reward_loss(chosen_B: Tensor, rejected_B: Tensor, margin_B: Tensor | None = None) -> Tensor:
    """softplus(-(chosen - rejected - margin)), [B]: the Bradley-Terry negative log-likelihood, finite for any scores.

    `margin_B` says by how much the chosen response should win (arXiv 2307.09288); None is 0.
    """
    difference = widened(chosen_B) - widened(rejected_B)
    return softplus(-(difference if margin_B is None else difference - margin_B))


def step_reward_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of whether a step is right (`labels`, bool) under sigmoid(score), any shape, finite for any scores.

    Process reward models: arXiv 2211.14275, 2305.20050.
    """
    wide = widened(scores)
    return softplus(wide.where(~labels, -wide))


def credit_entropy(rewards_BK: Tensor, mask_BK: Tensor, *, tau: float = 1.0, by_log_k: bool = False) -> Tensor:
    """Entropy (nats) of softmax(reward / tau) over the segments of each response, [B]; 0 where there is only one.

    It is made large by what is added to the loss of a reward model of segments, so that their rewards do not differ for nothing.
    `by_log_k` divides it by the logarithm of their number. Source: segment_reward.md 4.
    """
    held = mask_BK.bool()
    logs = torch.log_softmax((widened(rewards_BK) / tau).masked_fill(~held, -torch.inf), dim=1)
    entropy_B = -torch.where(held, logs.exp() * logs.masked_fill(~held, 0.0), 0.0).sum(1)
    return entropy_B / held.sum(1).clamp(min=2).log() if by_log_k else entropy_B
