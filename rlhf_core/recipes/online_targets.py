"""From rewards to what the updates aim at: token rewards, advantages and, with a critic, returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_core.config import OnlineConfig
from rlhf_core.objectives.advantages import gae, group_advantages, whiten
from rlhf_core.objectives.kl import kl_estimate, shape_rewards
from rlhf_core.recipes.online_methods import Method


@dataclass(frozen=True, slots=True)
class Targets:
    """All [B, T], fp32, 0 outside the mask and on responses without a reward; `returns` only with a critic."""

    token_rewards: Tensor
    advantages: Tensor
    returns: Tensor | None


def compute_targets(
    method: Method,
    config: OnlineConfig,
    scores: Sequence[float | None],
    *,
    mask: Tensor,
    logprobs: Tensor | None,
    reference: Tensor | None,
    values: Tensor | None,
) -> Targets:
    """Targets of a whole rollout of B responses, those to one prompt next to each other.

    `scores` are the composed rewards, None where a response has none: it takes no part in any statistic, and all its targets
    are 0. `logprobs` and `reference` (nats) are those of the trainer's weights before the update
    and of the reference, for a KL in the rewards; `values` are the critic's, for methods with one.
    """
    valid = torch.tensor([score is not None for score in scores])
    mask = mask * valid[:, None]
    kl = torch.zeros_like(mask)
    if method.kl_in_rewards(config):
        assert logprobs is not None and reference is not None, "a KL in the rewards needs both scoring passes"
        kl = kl_estimate(logprobs, reference, method.kl_estimate, mask)
    token_rewards = shape_rewards(torch.tensor([score or 0.0 for score in scores]), kl, mask, config.kl_coef, config.score_clip)
    returns = None
    if method.advantages == "gae":
        assert values is not None, "gae needs a critic: see METHODS"
        advantages, returns = gae(token_rewards, values, mask, config.gamma, config.gae_lambda)
    else:
        groups = (-1, config.samples_per_prompt)
        rewards_PK, valid_PK = token_rewards.sum(1).view(groups), valid.view(groups)
        advantages = group_advantages(rewards_PK, method.advantages, valid_PK).reshape(-1, 1) * mask
    return Targets(token_rewards, whiten(advantages, mask) if method.whiten else advantages, returns)
