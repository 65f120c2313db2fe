"""Each operation of the objectives page, mapped to this project's function: inputs and params in, expected names out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rlhf_core.imported import imported
from rlhf_core.methods.online import ONLINE, Aggregation
from rlhf_core.methods.preference import PREFERENCE
from rlhf_core.objectives.advantages import Earned, discounted_returns, gae, group_advantages, whiten
from rlhf_core.objectives.aggregation import aggregate
from rlhf_core.objectives.kl import kl_estimate, shape_rewards
from rlhf_core.objectives.logprobs import token_logprobs
from rlhf_core.objectives.policy import PolicyLoss, cispo_loss, gspo_loss, ppo_loss, reinforce_loss, rollout_correction
from rlhf_core.objectives.preference import (
    Pairs,
    dpo_loss,
    hinge_loss,
    ipo_loss,
    ipo_sum_loss,
    kto_loss,
    kto_reference,
    orpo_loss,
    robust_loss,
    simpo_loss,
)
from rlhf_core.objectives.reward import pairwise_reward_loss
from rlhf_core.objectives.value import value_loss
from rlhf_core.settings.supervised import DistillationKind
from tests.masked_divergences import masked_divergences

Outputs = dict[str, Tensor]


def _token_logprobs(**arguments: Any) -> Outputs:
    logprobs, entropy = token_logprobs(**arguments)
    return {"logprobs": logprobs, "entropy": entropy}


def _aggregate(values: Tensor, mask: Tensor, **params: Any) -> Outputs:
    return {"value": aggregate(values, mask, **params)}


def _kl_estimate(**arguments: Any) -> Outputs:
    return {"kl": kl_estimate(**arguments)}


def _shape_rewards(scores: Tensor, kl: Tensor, mask: Tensor, **params: Any) -> Outputs:
    return {"rewards": shape_rewards(scores, kl, mask, **params)}


def _gae(rewards: Tensor, values: Tensor, mask: Tensor, **params: Any) -> Outputs:
    advantages, returns = gae(rewards, values, mask, **params)
    return {"advantages": advantages, "returns": returns}


def _discounted_returns(rewards: Tensor, mask: Tensor, gamma: float) -> Outputs:
    return {"returns": discounted_returns(rewards, mask, gamma)}


def _whiten(values: Tensor, mask: Tensor) -> Outputs:
    return {"values": whiten(values, mask)}


def _group_advantages(rewards: Tensor, **params: Any) -> Outputs:
    return {"advantages": group_advantages(rewards, **params)}


def _policy_outputs(result: PolicyLoss, mask: Tensor, aggregation: Aggregation) -> Outputs:
    return {
        "loss": aggregate(result.losses, mask, aggregation),
        "clip_fraction": aggregate(result.clipped, mask, "token_mean"),
        "approx_kl": aggregate(result.approx_kl, mask, "token_mean"),
    }


def _ppo_loss(
    mask: Tensor, aggregation: Aggregation, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, **params: Any
) -> Outputs:
    return _policy_outputs(ppo_loss(logprobs, old_logprobs, advantages, mask, **params), mask, aggregation)


def _gspo_loss(mask: Tensor, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, **params: Any) -> Outputs:
    return _policy_outputs(gspo_loss(logprobs, old_logprobs, advantages, mask, **params), mask, "sequence_mean")


def _cispo_loss(
    mask: Tensor, aggregation: Aggregation, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, **params: Any
) -> Outputs:
    return _policy_outputs(cispo_loss(logprobs, old_logprobs, advantages, mask, **params), mask, aggregation)


def _reinforce_loss(logprobs: Tensor, advantages: Tensor, mask: Tensor, aggregation: Aggregation) -> Outputs:
    return {"loss": aggregate(reinforce_loss(logprobs, logprobs, advantages, mask).losses, mask, aggregation)}


def _rollout_correction(old_logprobs: Tensor, rollout_logprobs: Tensor, mask: Tensor, **params: Any) -> Outputs:
    return {"weights": rollout_correction(old_logprobs, rollout_logprobs, mask, **params)}


def _value_loss(
    mask: Tensor, aggregation: Aggregation, values: Tensor, old_values: Tensor, returns: Tensor, **params: Any
) -> Outputs:
    return {"loss": aggregate(value_loss(values, old_values, returns, mask, **params), mask, aggregation)}


_PREFERENCE_LOSSES: dict[str, Callable[..., Tensor]] = {
    "sigmoid": dpo_loss,
    "robust": robust_loss,
    "hinge": hinge_loss,
    "ipo": ipo_loss,
    "ipo_sum": ipo_sum_loss,
}


def _preference_loss(
    ref_chosen_logps: Tensor, ref_rejected_logps: Tensor, kind: str, beta: float, label_smoothing: float = 0.0, **logps: Tensor
) -> Outputs:
    pairs = _pairs(**logps, reference_chosen=ref_chosen_logps, reference_rejected=ref_rejected_logps)
    smoothing = {"label_smoothing": label_smoothing} if kind in ("sigmoid", "robust") else {}
    losses = _PREFERENCE_LOSSES[kind](pairs, beta=beta, **smoothing)
    chosen, rejected = (beta * log_ratios for log_ratios in pairs.log_ratios)
    return {
        "loss": losses.mean(),
        "losses": losses,
        "chosen_rewards": chosen,
        "rejected_rewards": rejected,
        "accuracy": (chosen > rejected).to(losses.dtype).mean(),
    }


def _pairs(policy_chosen_logps: Tensor, policy_rejected_logps: Tensor, **more: Tensor) -> Pairs:
    nothing = torch.zeros_like(policy_chosen_logps)
    others = {"reference_chosen": nothing, "reference_rejected": nothing, "margins": nothing}
    return Pairs(**{"chosen": policy_chosen_logps, "rejected": policy_rejected_logps, **others, **more})


def _simpo_loss(beta: float, gamma: float, **logps: Tensor) -> Outputs:
    return {"loss": simpo_loss(_pairs(**logps), beta=beta, gamma=gamma).mean()}


def _orpo_loss(lam: float, **logps: Tensor) -> Outputs:
    return {"loss": orpo_loss(_pairs(**logps), lam=lam).mean()}


def _kto_loss(kl_logratios: Tensor, policy_logps: Tensor, ref_logps: Tensor, desirable: Tensor, **params: Any) -> Outputs:
    kl = kto_reference(kl_logratios)
    losses = kto_loss(policy_logps, ref_logps, desirable, kl, **params)
    return {"loss": losses.mean(), "losses": losses, "kl": kl}


def _pairwise_reward_loss(chosen: Tensor, rejected: Tensor, margin: Tensor | None = None) -> Outputs:
    losses = pairwise_reward_loss(chosen, rejected, margin)
    return {"loss": losses.mean(), "accuracy": (chosen > rejected).to(losses.dtype).mean()}


def _distillation_loss(student_logits: Tensor, teacher_logits: Tensor, mask: Tensor, kind: DistillationKind) -> Outputs:
    return {"loss": aggregate(masked_divergences(student_logits, teacher_logits, mask, kind), mask, "token_mean")}


def _preference_method(
    name: str, ref_chosen_logps: Tensor | None = None, ref_rejected_logps: Tensor | None = None, **arguments: Any
) -> Outputs:
    """The loss of a row, by the parameters that it names."""
    reads = PREFERENCE[name].reads
    settings = {parameter: arguments.pop(parameter) for parameter in reads}
    references = {"reference_chosen": ref_chosen_logps, "reference_rejected": ref_rejected_logps}
    pairs = _pairs(**arguments, **{key: value for key, value in references.items() if value is not None})
    losses = imported(PREFERENCE[name].loss, "loss", "")(pairs, **settings)
    return {"loss": losses.mean(), "losses": losses}


def _estimator(path: str, rewards: Tensor, mask: Tensor, valid: Tensor, samples_per_prompt: int, **settings: Any) -> Outputs:
    """An estimator of advantages, by its import path."""
    estimate = imported(path, "advantages", "")(Earned(rewards, mask, valid.bool(), None, samples_per_prompt), **settings)
    return {"advantages": estimate.advantages}


OPERATIONS: dict[str, Callable[..., Outputs]] = {
    "token_logprobs": _token_logprobs,
    "aggregate": _aggregate,
    "kl_estimate": _kl_estimate,
    "shape_rewards": _shape_rewards,
    "gae": _gae,
    "discounted_returns": _discounted_returns,
    "whiten": _whiten,
    "group_advantages": _group_advantages,
    "ppo_loss": _ppo_loss,
    "gspo_loss": _gspo_loss,
    "cispo_loss": _cispo_loss,
    "reinforce_loss": _reinforce_loss,
    "rollout_correction": _rollout_correction,
    "value_loss": _value_loss,
    "preference_loss": _preference_loss,
    "simpo_loss": _simpo_loss,
    "orpo_loss": _orpo_loss,
    "kto_loss": _kto_loss,
    "pairwise_reward_loss": _pairwise_reward_loss,
    "distillation_loss": _distillation_loss,
    **{f"preference.{name}": partial(_preference_method, name) for name, row in PREFERENCE.items() if row.learns_from == "pairs"},
    **{f"advantages.{row.advantages.partition(':')[2]}": partial(_estimator, row.advantages) for row in ONLINE.values()},
}
