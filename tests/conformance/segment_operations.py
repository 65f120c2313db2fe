"""Each operation of the page on segment rewards, mapped to this project's functions: plain values in, plain values out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf_core.credit import positions
from rlhf_core.credit.positions import PositionFit, bins, fit
from rlhf_core.credit.segments import is_penalised, normalised, penalty_rewards, segments, token_rewards
from rlhf_core.objectives.advantages import gae
from rlhf_core.objectives.kl import kl_estimate, shape_rewards
from rlhf_core.objectives.logprobs import token_logprobs
from rlhf_core.objectives.reward import credit_entropy, pairwise_reward_loss

Values = dict[str, Any]


def _entropy(logits: Any) -> Values:
    rows = torch.tensor(logits, dtype=torch.float64)
    return {"entropy_nats": token_logprobs(rows, torch.zeros(len(rows), dtype=torch.long))[1].tolist()}


def _segments(entropy_of_predicted_token: Sequence[float], n_tokens: int, threshold: float, last_token_is_eos: bool) -> Values:
    spans = segments(entropy_of_predicted_token, n_tokens, threshold, ended=last_token_is_eos)
    return {"segment_starts": [start for start, _ in spans], "segment_ends_inclusive": [end - 1 for _, end in spans]}


def _reward_model_loss(chosen: Any, rejected: Any, tau: float, normalize_by_log_k: bool = False, **coefficient: float) -> Values:
    n = len(chosen)
    rows = [*chosen, *rejected]
    mask = torch.tensor([[k < len(row) for k in range(max(map(len, rows)))] for row in rows], dtype=torch.float64)
    rewards = torch.zeros_like(mask)
    for i, row in enumerate(rows):
        rewards[i, : len(row)] = torch.tensor(row, dtype=torch.float64)
    rewards.requires_grad_()
    evaluations = (rewards * mask).sum(1) / mask.sum(1)
    ranking = pairwise_reward_loss(evaluations[:n], evaluations[n:]).mean()
    spread = credit_entropy(rewards, mask, tau=tau, by_log_k=normalize_by_log_k).mean()
    loss = ranking - coefficient["lambda"] * spread
    loss.backward()
    assert rewards.grad is not None
    gradients = [found[: len(row)].tolist() for found, row in zip(rewards.grad, rows, strict=True)]
    return {
        "bt_loss": ranking.item(),
        "credit_entropy": spread.item(),
        "loss": loss.item(),
        "eval_chosen": evaluations[:n].tolist(),
        "eval_rejected": evaluations[n:].tolist(),
        "accuracy": (evaluations[:n] > evaluations[n:]).double().mean().item(),
        "grad_chosen": gradients[:n],
        "grad_rejected": gradients[n:],
    }


def _position_fit(segment_rewards: Any, epsilon: float, alpha: float) -> Values:
    assert (epsilon, alpha) == pytest.approx((positions.EPSILON, positions.ALPHA), rel=1e-6)
    found = bins(segment_rewards)
    mean, std = fit(found)
    return {
        "bins": found.to_json(),
        "mean_fit": asdict(mean),
        "std_fit": asdict(std),
        "params_list": [mean.w, std.w, mean.b, std.b],
    }


def _position_normaliser(params: Any, params_token_level: Any, std_floor: float) -> Values:
    own, token = PositionFit(*params), PositionFit(*params_token_level)
    return {
        "rows": [{"p": p, "mean": own.mean(p), "std": max(own.std(p), std_floor)} for p in (1 / 3, 2 / 3, 1.0, 0.001)],
        "rows_token_level": [
            {"p": p, "raw_std": token.std(p), "floored_std": max(token.std(p), std_floor)} for p in (1.0, 0.01, 0.0041, 0.001)
        ],
    }


def _token_rewards(
    rm_value_per_token: Any, segment_ends: Any, n_actions: int, eos_index: int, params: Any, rm_mean: float, rm_std: float
) -> Values:
    starts = [0, *(end + 1 for end in segment_ends[:-1])]
    spans = [(start, end + 1) for start, end in zip(starts, segment_ends, strict=True)]
    raw = [rm_value_per_token[end] for end in segment_ends]
    found = PositionFit(*params)
    by_place, by_scale = normalised(raw, found, 0.1), [(value - rm_mean) / rm_std for value in raw]
    told: Values = {}
    for mode, earned in {
        "segment_normalization": by_place,
        "same_segment_last": by_place,
        "every_segment_last": by_place,
        "segment_last_avg": by_scale,
    }.items():
        rewards = token_rewards(earned, spans, n_actions, mode)  # type: ignore[arg-type]
        told[mode] = {"token_reward": rewards, "normalised_segment": earned, "sum": math.fsum(rewards)}
    plain = token_rewards(raw, spans, n_actions, "segment_normalization")
    told["segment_normalization_no_params"] = {"token_reward": plain, "normalised_segment": raw, "sum": math.fsum(plain)}
    each = segments([9.9] * n_actions, n_actions, 0.0, ended=True)
    growing = normalised([float(k) for k in range(len(each))], found, 0.1)
    told["token_level_length_norm"] = {
        "token_reward": token_rewards(growing, each, n_actions, "segment_normalization", divided_by=eos_index + 1)
    }
    return told


def _shaped_gae(token_reward: Any, logp: Any, ref_logp: Any, values: Any, kl_coef: float, gamma: float, **decay: float) -> Values:
    rewards, logprobs, reference, told = (
        torch.tensor([row], dtype=torch.float64) for row in (token_reward, logp, ref_logp, values)
    )
    mask = torch.ones_like(rewards)
    kl = kl_estimate(logprobs, reference, "k1", mask)
    shaped: Tensor = shape_rewards(torch.zeros(1, dtype=torch.float64), kl, mask, kl_coef, None) + rewards
    advantages, returns = gae(shaped, told, mask, gamma, decay["lambda"])
    return {"reward": shaped[0].tolist(), "advantage": advantages[0].tolist(), "return": returns[0].tolist()}


def _penalties(n_actions: int, penalty: float, length_limit: int, cases: Any) -> Values:
    replaced = [is_penalised(case["eos"], case["response_length"], without_end=True, limit_tokens=length_limit) for case in cases]
    assert penalty_rewards(penalty, n_actions, "segment_last_avg") == [0.0] * (n_actions - 1) + [penalty]
    return {
        "replaced": replaced,
        "token_reward_when_replaced": penalty_rewards(penalty, n_actions, "segment_normalization"),
    }


SEGMENT_OPERATIONS: dict[str, Callable[..., Values]] = {
    "segment_reward.entropy": _entropy,
    "segment_reward.segments": _segments,
    "segment_reward.reward_model_loss": _reward_model_loss,
    "segment_reward.position_fit": _position_fit,
    "segment_reward.position_normaliser": _position_normaliser,
    "segment_reward.token_rewards": _token_rewards,
    "segment_reward.shaped_gae": _shaped_gae,
    "segment_reward.penalties": _penalties,
}
