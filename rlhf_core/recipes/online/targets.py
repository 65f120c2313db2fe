"""From rewards to what the updates aim at: token rewards, advantages and, with a critic, returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlhf_core.imported import imported
from rlhf_core.objectives.advantages import Earned, whiten
from rlhf_core.objectives.kl import kl_estimate, shape_rewards
from rlhf_core.objectives.twisted import less_exponential, less_indicator
from rlhf_core.settings.online import OnlineConfig
from rlhf_core.settings.repulse import RewardTransformSettings


@dataclass(frozen=True, slots=True)
class Targets:
    """All [B, T], fp32, 0 outside the mask and on responses without a reward; `returns` only with a critic.

    `kl_coef` is this round's, for a KL in the loss.
    """

    token_rewards: Tensor
    advantages: Tensor
    returns: Tensor | None
    kl_coef: float


def compute_targets(
    config: OnlineConfig,
    scores: Sequence[float | None],
    *,
    mask: Tensor,
    kl_coef: float,
    logprobs: Tensor | None = None,
    reference: Tensor | None = None,
    values: Tensor | None = None,
    teacher: Tensor | None = None,
    token_rewards: Tensor | None = None,
    turn_ends: Tensor | None = None,
) -> Targets:
    """Targets of a whole rollout of B responses, those to one prompt next to each other.

    `scores` are the composed rewards, None where a response has none: it takes no part in any statistic, and all its targets
    are 0. `token_rewards` [B, T] come on top of them, at the tokens that earned them. `logprobs` and `reference` (nats) are those of
    the trainer's weights before the update and of the reference, for a KL in the rewards; `values` are the critic's, and `teacher` are
    a teacher's log-probs, for methods with one. `turn_ends` [B, T] is 1 at the last token of each turn, for a discount by turn.
    """
    method = config.row
    valid = torch.tensor([score is not None for score in scores])
    mask = mask * valid[:, None]
    kl = torch.zeros_like(mask)
    if config.kl_in("reward"):
        assert logprobs is not None and reference is not None, "a KL in the rewards needs both scoring passes"
        kl = kl_estimate(logprobs, reference, config.estimate_of_kl, mask)
    worth = torch.tensor([score or 0.0 for score in scores])
    earned = shape_rewards(transformed(worth, config.reward_transform), kl, mask, kl_coef, config.score_clip)
    if token_rewards is not None:
        earned = earned + token_rewards * mask
    estimator = imported(method.advantages, "advantages", "my_estimators:my_advantages")
    estimate = estimator(
        Earned(earned, mask, valid, values, config.samples_per_prompt, logprobs, teacher, worth),
        **_settings(config, turn_ends),
    )
    advantages = whiten(estimate.advantages, mask) if method.whiten else estimate.advantages
    return Targets(earned, advantages, estimate.returns, kl_coef)


def transformed(worth: Tensor, how: RewardTransformSettings) -> Tensor:
    """Rewards [B] as the settings say that they count."""
    if how.kind == "exponential":
        return less_exponential(worth, how.alpha, how.beta)
    return less_indicator(worth, how.alpha, how.threshold) if how.kind == "indicator" else worth


def _settings(config: OnlineConfig, turn_ends: Tensor | None) -> dict[str, Any]:
    """What the estimator reads; a discount by turn is 1 within one."""
    values = config.values(config.row.advantages_reads)
    if config.gamma_by == "turn" and "gamma" in values:
        assert turn_ends is not None, "an environment has turns"
        values["gamma"] = torch.where(turn_ends.bool(), float(values["gamma"]), 1.0)
    return values
