"""Rewards to advantages and returns. Everything here is detached: it weighs gradients and carries none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rlhf_core.objectives.aggregation import AllSum, local_sum, masked

GroupKind = Literal["rloo", "group_mean", "group_norm"]
# What lies one token ahead is worth this much less; a tensor [B, T] has it for each token.
Discount = float | Tensor


@dataclass(frozen=True, slots=True)
class Earned:
    """What an estimator of advantages may read of B responses, those to one prompt next to each other.

    Token `rewards` [B, T] and the `mask` [B, T] of the tokens that count, which is 0 on responses that are not `valid` [B] (they
    have no reward); `values` [B, T] of a critic, for methods with one; for those with a teacher the log-probs (nats) [B, T] of the
    tokens under it and under the policy before the update. `scores` [B] are what the responses are worth, without a KL, a transform
    or a bound.
    """

    rewards: Tensor
    mask: Tensor
    valid: Tensor
    values: Tensor | None
    samples_per_prompt: int
    logprobs: Tensor | None = None
    teacher_logprobs: Tensor | None = None
    scores: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Estimate:
    """Advantages [B, T], 0 outside the mask; `returns` [B, T] are what a critic learns, for methods with one."""

    advantages: Tensor
    returns: Tensor | None = None


def critic_advantages(earned: Earned, *, gamma: Discount, lam: float) -> Estimate:
    """`gae`, from the critic's values."""
    assert earned.values is not None, "a method with these advantages has the role 'critic'"
    return Estimate(*gae(earned.rewards, earned.values, earned.mask, gamma, lam))


def returns_to_go(earned: Earned, *, gamma: Discount) -> Estimate:
    """`discounted_returns`: REINFORCE, and REINFORCE++ (arXiv 2501.03262) once they are whitened."""
    return Estimate(discounted_returns(earned.rewards, earned.mask, gamma))


def returns_less_others(earned: Earned, *, gamma: Discount) -> Estimate:
    """Discounted returns less the mean return, from the first token on, of the prompt's other samples.

    A sample that has no other keeps its return. The baseline does not hang on the sample's own tokens, so the gradient stays unbiased.
    """
    returns = discounted_returns(earned.rewards, earned.mask, gamma)
    groups = (-1, earned.samples_per_prompt)
    whole_PK, valid_PK = returns[:, 0].view(groups), earned.valid.view(groups)
    others_PK = valid_PK.sum(1, keepdim=True) - valid_PK.long()
    baseline_PK = (masked(whole_PK, valid_PK).sum(1, keepdim=True) - masked(whole_PK, valid_PK)) / others_PK.clamp(min=1)
    return Estimate(masked(returns - baseline_PK.reshape(-1, 1), earned.mask))


def rloo_advantages(earned: Earned) -> Estimate:
    """`group_advantages` of kind `rloo` on the sums of token rewards, the same at every token; so are the two below."""
    return _of_groups(earned, "rloo")


def group_mean_advantages(earned: Earned) -> Estimate:
    """Less the group's mean (Dr. GRPO, REINFORCE++-baseline)."""
    return _of_groups(earned, "group_mean")


def group_norm_advantages(earned: Earned) -> Estimate:
    """Less the group's mean, and divided by its deviation (GRPO)."""
    return _of_groups(earned, "group_norm")


def teacher_advantages(earned: Earned) -> Estimate:
    """Teacher - policy log-prob of each token that the policy drew: its mean falls short of 0 by KL(policy || teacher)."""
    assert earned.logprobs is not None and earned.teacher_logprobs is not None, (
        "a method with these advantages has the role 'teacher'"
    )
    difference = masked(earned.teacher_logprobs.detach(), earned.mask) - masked(earned.logprobs.detach(), earned.mask)
    return Estimate(masked(difference, earned.mask))


def _of_groups(earned: Earned, kind: GroupKind) -> Estimate:
    groups = (-1, earned.samples_per_prompt)
    advantages_PK = group_advantages(earned.rewards.sum(1).view(groups), kind, earned.valid.view(groups))
    return Estimate(masked(advantages_PK.reshape(-1, 1).expand_as(earned.mask), earned.mask))


def gae(rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, gamma: Discount, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates and returns, both [B, T] and 0 outside the mask (arXiv 1506.02438).

    delta_t = r_t + gamma * V_{t+1} - V_t, A_t = delta_t + gamma * lam * A_{t+1}, return = A + V. Rewards and values count as
    0 outside the mask: a response ends its episode, also one that was cut short.
    """
    rewards, values = masked(rewards_BT.detach(), mask_BT), masked(values_BT.detach(), mask_BT)
    next_values = torch.nn.functional.pad(values[:, 1:], (0, 1))
    advantages = masked(_decayed_sums(rewards + gamma * next_values - values, gamma * lam), mask_BT)
    return advantages, advantages + values


def discounted_returns(rewards_BT: Tensor, mask_BT: Tensor, gamma: Discount) -> Tensor:
    """G_t = r_t + gamma * G_{t+1}, [B, T], 0 outside the mask."""
    return masked(_decayed_sums(masked(rewards_BT.detach(), mask_BT), gamma), mask_BT)


def whiten(values_BT: Tensor, mask_BT: Tensor, all_sum: AllSum = local_sum) -> Tensor:
    """(x - mean) / sqrt(max(variance, 1e-8)) over the valid tokens, [B, T], 0 outside the mask.

    The mean and the population variance are those of all ranks when `all_sum` sums over them.
    """
    values, mask = masked(values_BT.detach(), mask_BT), mask_BT.bool()
    total, count = all_sum(torch.stack([values.sum(), mask.sum()]))
    centred = masked(values - total / count.clamp(min=1), mask)
    variance: Tensor = all_sum(centred.square().sum()) / count.clamp(min=1)
    return centred / variance.clamp(min=1e-8).sqrt()


def group_advantages(rewards_PK: Tensor, kind: GroupKind, valid_PK: Tensor | None = None) -> Tensor:
    """Advantages [P, K] of K >= 2 samples a prompt against one another; 0 where a sample is not valid or has no other.

    `rloo`: less the mean of the others (arXiv 2402.14740). `group_mean`: less the group's mean (Dr. GRPO, arXiv 2503.20783).
    `group_norm`: that, divided by the group's unbiased standard deviation + 1e-9 (GRPO, arXiv 2402.03300). Raises
    `ValueError` for K < 2. Without `valid_PK` all samples are valid; the others take no part in means and deviations.
    """
    samples = rewards_PK.shape[-1]
    if samples < 2:
        raise ValueError(f"group advantages compare samples of one prompt: {samples} a prompt given, at least 2 needed")
    # In fp64: rounding in the mean of equal rewards must stay far below the 1e-9 beside the standard deviation.
    valid = torch.ones_like(rewards_PK, dtype=torch.bool) if valid_PK is None else valid_PK
    rewards = masked(rewards_PK.detach().double(), valid)
    count = valid.sum(dim=-1, keepdim=True)
    centred = masked(rewards - rewards.sum(dim=-1, keepdim=True) / count.clamp(min=1), valid)
    if kind == "rloo":
        centred = centred * count / (count - 1).clamp(min=1)
    elif kind == "group_norm":
        variance = centred.square().sum(dim=-1, keepdim=True) / (count - 1).clamp(min=1)
        centred = centred / (variance.sqrt() + 1e-9)
    return centred.to(torch.promote_types(rewards_PK.dtype, torch.float32))


def _decayed_sums(values_BT: Tensor, decay: Discount) -> Tensor:
    """S_t = x_t + decay_t * S_{t+1} along the last axis."""
    decays_BT = torch.as_tensor(decay, dtype=values_BT.dtype, device=values_BT.device).expand_as(values_BT)
    sums = torch.zeros_like(values_BT)
    running = values_BT.new_zeros(values_BT.shape[:-1])
    for t in reversed(range(values_BT.shape[-1])):
        running = values_BT[..., t] + decays_BT[..., t] * running
        sums[..., t] = running
    return sums
