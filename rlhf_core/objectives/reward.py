"""The losses of reward models: on pairs, per row [B], and on judged steps."""

from __future__ import annotations

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
