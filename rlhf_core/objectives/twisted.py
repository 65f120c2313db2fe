"""Learning from what a policy says rarely: importance weights towards bad responses, and a proposal that finds them.

Source: RePULSe, arXiv 2510.21184 (repulse.md, section 1); contrastive twist learning, arXiv 2404.17546. The target of a policy p is
sigma(y|x) ~ p(y|x) exp(beta r(y)), with beta < 0: what p says where rewards are low. Everything is detached: it weighs gradients and
carries none. Responses to one prompt are next to each other, K to each.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rlhf_core.objectives.advantages import Discount, Earned, Estimate, returns_less_others
from rlhf_core.objectives.aggregation import masked

# How the weighted log-probs of a prompt's K samples become one: their mean, as in the published code, or their sum, as in the paper.
NegativeReduction = Literal["mean_k", "sum_k"]
# The squares of a gradient that is exp of more times as large have no fp32 norm.
_MOST_EXPONENT = 30.0


def less_exponential(rewards: Tensor, alpha: float, beta: float) -> Tensor:
    """r - alpha exp(beta r): with beta < 0 low rewards are punished exponentially. Finite for any finite reward; fp32 or better."""
    wide = rewards.detach().to(torch.promote_types(rewards.dtype, torch.float32))
    return wide - alpha * (beta * wide).clamp(max=_MOST_EXPONENT).exp()


def less_indicator(rewards: Tensor, alpha: float, threshold: float) -> Tensor:
    """r - alpha where r < threshold."""
    return rewards.detach() - alpha * (rewards.detach() < threshold)


def importance_log_weights(
    rewards_B: Tensor, beta: float, logprobs_BT: Tensor, proposal_logprobs_BT: Tensor, mask_BT: Tensor
) -> Tensor:
    """log p(y) + beta r(y) - log q(y), [B] in fp64, for responses y drawn from the proposal q; nats, only tokens of the mask count."""
    ratio = _sums(logprobs_BT, mask_BT) - _sums(proposal_logprobs_BT, mask_BT)
    return beta * rewards_B.detach().double() + ratio


def self_normalised(log_weights_B: Tensor, samples_per_prompt: int, valid_B: Tensor) -> Tensor:
    """Weights [P, K] in fp64 that sum to 1 over a prompt's valid samples, and to 0 where it has none."""
    shape = (-1, samples_per_prompt)
    valid = valid_B.view(shape)
    logs = log_weights_B.view(shape).masked_fill(~valid, -torch.inf)
    # A prompt without a valid sample has no weights: not NaN, and no gradient.
    return torch.where(valid, torch.softmax(logs, dim=1), 0.0)


def target_weights(
    log_weights_B: Tensor, rewards_B: Tensor, samples_per_prompt: int, valid_B: Tensor, *, uniform: bool, below: float | None
) -> Tensor:
    """What the samples of a prompt count in the term that makes them rarer, [P, K]: `self_normalised`, or 1 / K each.

    Those worth `below` or more count nothing, and nobody counts for them: a prompt without any has no such term.
    """
    weights = self_normalised(torch.zeros_like(log_weights_B) if uniform else log_weights_B, samples_per_prompt, valid_B)
    if below is None:
        return weights
    return torch.where(rewards_B.view_as(weights) < below, weights, 0.0)


def effective_samples(weights_PK: Tensor) -> Tensor:
    """1 / sum of squared weights, [P]: from 1, one sample has all the weight, to K; 0 for a prompt without weights."""
    squares = weights_PK.square().sum(1)
    return torch.where(squares > 0, 1 / squares.clamp(min=1e-300), 0.0)


def returns_less_others_and_bad(
    earned: Earned,
    *,
    gamma: Discount,
    alpha: float,
    beta: float,
    reduction: NegativeReduction,
    weights: Literal["importance", "uniform"],
    weights_beta: float | None = None,
    below: float | None = None,
) -> Estimate:
    """`returns_less_others`, and `negative_advantages` of the same responses: the policy is its own proposal (repulse.md, 1.7)."""
    assert earned.scores is not None, "the rewards of responses are always given"
    log_weights = (beta if weights_beta is None else weights_beta) * earned.scores.double()
    samples = earned.samples_per_prompt
    own = target_weights(log_weights, earned.scores, samples, earned.valid, uniform=weights == "uniform", below=below)
    negative_B1 = negative_advantages(own, alpha, reduction)[:, None]
    advantages = returns_less_others(earned, gamma=gamma).advantages
    return Estimate(masked(advantages + negative_B1.to(advantages.dtype), earned.mask))


def negative_advantages(weights_PK: Tensor, alpha: float, reduction: NegativeReduction) -> Tensor:
    """-alpha w, [B]: as the advantage of every token of a response it pushes down what is likely under sigma.

    With the mean over prompts and samples of token means this is alpha mean_pk(w tokmean(log p)); `sum_k` is K times that.
    """
    scale = alpha * (weights_PK.shape[1] if reduction == "sum_k" else 1)
    return (-scale * weights_PK).reshape(-1)


def twist_weights(
    logprobs_BT: Tensor,
    proposal_logprobs_BT: Tensor,
    mask_BT: Tensor,
    samples_per_prompt: int,
    valid_B: Tensor,
) -> Tensor:
    """v [B, T] in fp64: how the samples of a prompt weigh by their beginnings, up to each token, under p psi / q.

    psi = q / p of the token itself. The proposal is the one that drew the responses, so the beginning is what stands before a token, and
    the first token has 1/K. A response that has ended keeps its last weight.
    """
    p, q = (masked(x.detach().double(), mask_BT) for x in (logprobs_BT, proposal_logprobs_BT))
    logs = (p - q).cumsum(1) + (q - p)
    shape = (-1, samples_per_prompt, logs.shape[1])
    valid = valid_B.view(-1, samples_per_prompt, 1)
    weights = torch.softmax(logs.view(shape).masked_fill(~valid, -torch.inf), dim=1)
    return torch.where(valid, weights, 0.0).view_as(logs)


def contrastive_advantages(weights_PK: Tensor, twist_weights_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """w - v, [B, T], 0 outside the mask: as advantages of the proposal's tokens this is the loss of contrastive twist learning.

    The first term draws the proposal to sigma; the second has an expected gradient of 0, and makes equal samples teach nothing.
    """
    return masked(weights_PK.reshape(-1, 1) - twist_weights_BT, mask_BT)


def _sums(logprobs_BT: Tensor, mask_BT: Tensor) -> Tensor:
    return masked(logprobs_BT.detach().double(), mask_BT).sum(1)
