"""Each operation of the page on RePULSe, mapped to this project's functions: plain values in, plain values out, in one dtype."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evaluation.redteam.exact import bad_cases, log_p_bad
from evaluation.redteam.gcg_steps import likeliest_swaps, successes, target_losses
from evaluation.redteam.risk import bad_share, cvar, over_seeds, t_interval, t_quantile
from rlhf_core.methods.online import ONLINE
from rlhf_core.objectives.advantages import Earned, gae, returns_less_others, whiten
from rlhf_core.objectives.aggregation import aggregate, masked
from rlhf_core.objectives.kl import kl_estimate, shape_rewards
from rlhf_core.objectives.policy import ppo_loss, reinforce_loss
from rlhf_core.objectives.twisted import (
    contrastive_advantages,
    effective_samples,
    importance_log_weights,
    less_exponential,
    negative_advantages,
    self_normalised,
    twist_weights,
)
from rlhf_core.objectives.value import value_loss
from rlhf_core.rollout.hf_engine import _Open

Values = dict[str, Any]
_CASES = {
    case["id"].partition("_")[0]: case
    for case in json.loads((Path(__file__).parent / "vectors" / "repulse.json").read_text())["cases"]
}


class Given:
    """Inputs [P, K, T] and [P, K] of a case as the functions take them: [B, T] and [B]."""

    def __init__(self, inputs: Values, dtype: torch.dtype) -> None:
        self._inputs, self.dtype = inputs, dtype
        self.samples = len(next(own for own in (inputs.get("mask"), inputs.get("logp")) if own is not None)[0])

    def tokens(self, name: str) -> Tensor:
        """[B, T]."""
        return torch.tensor(self._inputs[name], dtype=self.dtype).flatten(0, 1)

    def rows(self, name: str) -> Tensor:
        """[B]."""
        return torch.tensor(self._inputs[name], dtype=self.dtype).flatten()

    def valid(self) -> Tensor:
        """Every response has a reward."""
        return torch.ones(len(self.tokens("mask")), dtype=torch.bool)

    def nested(self, values: Tensor) -> Any:
        """By prompt again."""
        return values.view(-1, self.samples, *values.shape[1:]).tolist()


def _kl_return(kl_coef: float, dtype: torch.dtype, **inputs: Any) -> Values:
    given = Given(inputs, dtype)
    mask = given.tokens("mask")
    kl = kl_estimate(given.tokens("logp"), given.tokens("logp0"), ONLINE["repulse"].kl_estimate, mask)
    rewards = shape_rewards(given.rows("r"), kl, mask, kl_coef)
    returns = returns_less_others(Earned(rewards, mask, given.valid(), None, 1), gamma=1.0).advantages[:, 0]
    found = {"kl_tokens": kl, "token_rewards": rewards, "ret": returns, "kl_token_mean": kl.sum(1) / mask.sum(1)}
    return {name: given.nested(values) for name, values in found.items()}


def _reward_transform(r: Any, alpha_beta: Any, dtype: torch.dtype) -> Values:
    rewards = torch.tensor(r, dtype=dtype)
    return {"r_prime": [less_exponential(rewards, alpha, beta).tolist() for alpha, beta in alpha_beta]}


def _advantages(given: Given) -> Tensor:
    """Of returns: each as the reward of the last token."""
    mask = given.tokens("mask")
    rewards = shape_rewards(given.rows("ret"), torch.zeros_like(mask), mask, 0.0)
    return returns_less_others(Earned(rewards, mask, given.valid(), None, given.samples), gamma=1.0).advantages


def _loss(logprobs: Tensor, advantages: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """What an update with these advantages minimises, and its gradient."""
    logprobs = logprobs.clone().requires_grad_()
    losses = reinforce_loss(logprobs, logprobs.detach(), advantages, mask).losses
    loss = aggregate(losses, mask, ONLINE["repulse"].aggregation)
    [gradient] = torch.autograd.grad(loss, [logprobs])
    return loss.detach(), gradient


def _reinforce_loss(dtype: torch.dtype, **inputs: Any) -> Values:
    given = Given(inputs, dtype)
    advantages = _advantages(given)
    loss, gradient = _loss(given.tokens("logp"), advantages, given.tokens("mask"))
    adv = advantages[:, 0]
    return {
        "baseline": given.nested(given.rows("ret") - adv),
        "adv": given.nested(adv),
        "loss": float(loss),
        "dloss_dlogp": given.nested(gradient),
    }


def _weights(given: Given, beta: float, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    own = given.tokens("mask") if mask is None else mask
    logs = importance_log_weights(given.rows("r"), beta, given.tokens("logp"), given.tokens("logq"), own)
    return logs, self_normalised(logs, given.samples, given.valid())


def _snis_weights(beta: float, dtype: torch.dtype, **inputs: Any) -> Values:
    given = Given(inputs, dtype)
    logs, weights = _weights(given, beta)
    # What the published code does: padding of p's log-probs counts.
    everywhere = torch.ones_like(given.tokens("mask"))
    leaked = importance_log_weights(
        given.rows("r"), beta, given.tokens("logp"), masked(given.tokens("logq"), given.tokens("mask")), everywhere
    )
    return {
        "log_w": given.nested(logs),
        "w": weights.tolist(),
        "ess": effective_samples(weights).tolist(),
        "w_if_padding_leaks_from_logp": self_normalised(leaked, given.samples, given.valid()).tolist(),
    }


def _negative_training_loss(use: str, alpha: float, dtype: torch.dtype) -> Values:
    ours, theirs = (_CASES[name]["inputs"] for name in ("v03", "v04"))
    own, proposed = Given(ours, dtype), Given(theirs, dtype)
    rl, _ = _loss(own.tokens("logp"), _advantages(own), own.tokens("mask"))
    _, weights = _weights(proposed, theirs["beta"])
    mask = proposed.tokens("mask")

    def negative(reduction: Any) -> tuple[Tensor, Tensor]:
        advantages = negative_advantages(weights, alpha, reduction)[:, None].expand_as(mask)
        return _loss(proposed.tokens("logp"), advantages, mask)

    mean, gradient = negative("mean_k")
    total, _ = negative("sum_k")
    return {
        "loss": float(rl + mean),
        "rl": float(rl),
        "neg_mean_over_PK": float(mean) / alpha,
        "neg_sum_over_K_mean_over_P": float(total) / alpha,
        "dloss_dlogp_neg": proposed.nested(gradient),
        "alpha_paper_equivalent": alpha * float(mean / total),
    }


def _contrastive(given: Given, beta: float, *, second_term: bool = True) -> Values:
    mask, p, q = given.tokens("mask"), given.tokens("logp"), given.tokens("logq")
    _, weights = _weights(given, beta)
    v = twist_weights(p, q, mask, given.samples, given.valid())
    if not second_term:
        v = torch.zeros_like(v)
    # The loss is of log psi = log q - log p.
    log_psi = masked(q - p, mask)
    loss, gradient = _loss(log_psi, contrastive_advantages(weights, v, mask), mask)
    ended = masked(p, mask).cumsum(1) + log_psi - masked(q, mask).cumsum(1)
    return {
        "logpsi": given.nested(log_psi),
        "w": weights.tolist(),
        "log_v": given.nested(ended),
        "v": given.nested(v),
        "loss": float(loss),
        "dloss_dlogq": given.nested(gradient),
        "prefix_ratio_check": given.nested(v),
    }


def _ctl_loss(dtype: torch.dtype, use: str | None = None, lq_new: str | None = None, beta: float = 0.0, **inputs: Any) -> Values:
    if use is None:
        return _contrastive(Given({**inputs}, dtype), beta)
    case = _CASES["v04"]["inputs"]
    return _contrastive(Given(case, dtype), case["beta"], second_term=lq_new is not None)


def _ctl_right_aligned(use: str, dtype: torch.dtype) -> Values:
    case = dict(_CASES["v04"]["inputs"])
    length = len(case["mask"][0][0])
    for name in ("logp", "logq", "mask"):
        case[name] = [
            [[0.0] * (length - int(sum(kept))) + row[: int(sum(kept))] for row, kept in zip(rows, masks, strict=True)]
            for rows, masks in zip(case[name], _CASES["v04"]["inputs"]["mask"], strict=True)
        ]
    return _contrastive(Given(case, dtype), case["beta"]) | {"mask": case["mask"]}


def _base_proposal_loss(beta: float, alpha: float, dtype: torch.dtype, **inputs: Any) -> Values:
    given = Given(inputs, dtype)
    mask, logp = given.tokens("mask"), given.tokens("logp")
    weights = self_normalised(importance_log_weights(given.rows("r"), beta, logp, logp, mask), given.samples, given.valid())
    advantages = _advantages(given) + negative_advantages(weights, alpha, "mean_k")[:, None]
    loss, gradient = _loss(logp, advantages, mask)
    return {"w": weights.tolist(), "loss": float(loss), "dloss_dlogp": given.nested(gradient)}


def _ppo(dtype: torch.dtype, **inputs: Any) -> Values:
    given = {name: torch.tensor(value, dtype=dtype) for name, value in inputs.items()}
    mask = given["mask"]
    advantages, returns = gae(given["rewards"], given["values"], mask, 1.0, 0.95)
    normed = whiten(advantages, mask)

    def policy(logprobs: Tensor) -> float:
        losses = ppo_loss(logprobs, given["logp_old"], normed, mask, clip_low=0.2, clip_high=0.2).losses
        return float(aggregate(losses, mask, "sequence_mean"))

    values = value_loss(given["values_new"], given["values"], returns, mask, clip=0.2)
    return {
        "adv": advantages.tolist(),
        "returns": returns.tolist(),
        "adv_norm": normed.tolist(),
        "policy_loss": policy(given["logp_new"]),
        "value_loss": float(aggregate(values, mask, "sequence_mean")),
        "policy_loss_at_ratio_1": policy(given["logp_old"]),
    }


def _tabular_target(dtype: torch.dtype, bad: list[int], beta: float, **inputs: Any) -> Values:
    given = {name: torch.tensor(value, dtype=dtype) for name, value in inputs.items()}
    logits = given["logits1"].clone().requires_grad_()
    first, second = logits.log_softmax(0), given["logits2"].log_softmax(1)
    logp, r = (first[:, None] + second).detach(), given["r"]
    # All sequences are the samples of one prompt, each drawn as often as any other.
    tokens = torch.stack([first.detach()[:, None].expand_as(second), second], 2).flatten(0, 1)
    even = torch.zeros_like(tokens)
    logs = importance_log_weights(r.flatten(), beta, tokens, even, torch.ones_like(tokens))
    sigma = self_normalised(logs, r.numel(), torch.ones(r.numel(), dtype=torch.bool)).view_as(r)
    q1 = sigma.sum(1)
    cases = bad_cases(first.detach(), second, bad)
    [gradient] = torch.autograd.grad((sigma.to(dtype) * (first[:, None] + second)).sum(), [logits])
    p = logp.double().exp()
    return {
        "p": p.tolist(),
        "sigma": sigma.tolist(),
        "Z": float(torch.logsumexp(logs, 0).exp()),
        "q_star_1": q1.tolist(),
        "q_star_2": (sigma / q1[:, None]).tolist(),
        "psi_star_1": (q1 / p.sum(1)).tolist(),
        "E_p_r": float((p * r).sum()),
        "E_sigma_r": float((sigma * r).sum()),
        "KL_sigma_p": float((sigma * (sigma.log() - logp)).sum()),
        "log_p_bad": log_p_bad(cases),
        "log_p_bad_case1": cases[0],
        "log_p_bad_case2": cases[1],
        "grad_logits1_of_E_sigma_logp_sigma_detached": gradient.tolist(),
    }


def _ctl_expected_gradient(use: str, q_logits1: Any, q_logits2: Any, K: int, dtype: torch.dtype) -> Values:
    case = {name: torch.tensor(value, dtype=dtype) for name, value in _CASES["v13"]["inputs"].items()}
    p1, p2 = case["logits1"].log_softmax(0), case["logits2"].log_softmax(1)
    logits1, logits2 = (torch.tensor(own, dtype=dtype, requires_grad=True) for own in (q_logits1, q_logits2))
    q1, q2 = logits1.log_softmax(0), logits2.log_softmax(1)
    sequences = list(itertools.product(range(len(p1)), repeat=2))
    expected = {True: torch.zeros((), dtype=dtype), False: torch.zeros((), dtype=dtype)}
    for drawn in itertools.product(sequences, repeat=K):
        p, q = (torch.stack([torch.stack([one[a], two[a, b]]) for a, b in drawn]) for one, two in ((p1, p2), (q1, q2)))
        mask, valid = torch.ones_like(p), torch.ones(K, dtype=torch.bool)
        rewards = torch.stack([case["r"][a, b] for a, b in drawn])
        weights = self_normalised(importance_log_weights(rewards, float(case["beta"]), p, q, mask), K, valid)
        for second_term, so_far in expected.items():
            v = twist_weights(p, q, mask, K, valid) * second_term
            losses = reinforce_loss(q - p, q.detach(), contrastive_advantages(weights, v, mask), mask).losses
            probability = q.detach().sum().exp()
            expected[second_term] = so_far + probability * aggregate(losses, mask, "sequence_mean")
    one, two = torch.autograd.grad(expected[True], [logits1, logits2], retain_graph=True)
    without = torch.autograd.grad(expected[False], [logits1, logits2])
    torch.testing.assert_close((one, two), without)
    return {
        "grad_logits1": one.tolist(),
        "grad_logits2": two.tolist(),
        "E_loss_with": expected[True].item(),
        "E_loss_without": expected[False].item(),
    }


def _risk_metrics(r: Any, eta: float, fracs: Any, seeds: Any, dtype: torch.dtype) -> Values:
    interval = over_seeds(seeds)
    return {
        "p_bad": bad_share(r, eta).mean,
        "cvar": [cvar(r, fraction) for fraction in fracs],
        "boot_exhaustive_ci": [interval.low, interval.high],
        "boot_mean": interval.mean,
    }


def _t_interval(x: Any, dtype: torch.dtype) -> Values:
    found = [t_interval(column) for column in zip(*x, strict=True)]
    return {
        "mean": [own.mean for own in found],
        "half": [own.high - own.mean for own in found],
        "t975": {f"n{n}": t_quantile(n) for n in (3, 5)},
    }


def _gcg_pieces(
    grad: Any,
    topk: int,
    banned: Any,
    target_logits: Any,
    target: Any,
    rewards_per_behaviour: Any,
    reward_threshold: float,
    dtype: torch.dtype,
) -> Values:
    gradient, logits = (torch.tensor(own, dtype=dtype) for own in (grad, target_logits))
    is_banned = torch.zeros(gradient.shape[1], dtype=torch.bool)
    is_banned[banned] = True
    counts = successes(rewards_per_behaviour, reward_threshold)
    wanted = torch.tensor(target)
    return {
        "topk_ids": likeliest_swaps(gradient, is_banned, topk).tolist(),
        "loss": float(target_losses(logits[None], wanted)),
        "mellowmax_alpha1": float(target_losses(logits[None], wanted, 1.0)),
        "total_bad": counts.below,
        "total_bad_minus_1": counts.far_below,
        "asr": counts.share,
        "asr_plotted": counts.far_share,
    }


def _action_mask(sequences: Any, prompt_len: int, eos: int, pad: int, dtype: torch.dtype) -> Values:
    """As the sampler goes from token to token."""
    responses = torch.tensor(sequences)[:, prompt_len:]
    count, width = responses.shape
    batch = _Open(torch.arange(count), torch.full((count,), prompt_len), torch.full((count,), width), None)
    lengths, open_rows = [width] * count, set(range(count))
    for step in range(width):
        going_on = set(batch.going_on(responses[:, step], torch.tensor([eos]), step).tolist())
        for row in open_rows - going_on:
            lengths[row] = step + 1
        open_rows &= going_on
    return {"action_mask": [[int(t < length) for t in range(width)] for length in lengths], "length": lengths}


REPULSE_OPERATIONS: dict[str, Callable[..., Values]] = {
    "repulse.kl_return": _kl_return,
    "repulse.reward_transform": _reward_transform,
    "repulse.reinforce_loss": _reinforce_loss,
    "repulse.snis_weights": _snis_weights,
    "repulse.negative_training_loss": _negative_training_loss,
    "repulse.ctl_loss": _ctl_loss,
    "repulse.ctl_loss_original_alignment": _ctl_right_aligned,
    "repulse.base_proposal_loss": _base_proposal_loss,
    "repulse.ppo": _ppo,
    "repulse.tabular_target": _tabular_target,
    "repulse.ctl_expected_gradient": _ctl_expected_gradient,
    "repulse.risk_metrics": _risk_metrics,
    "repulse.t_interval": _t_interval,
    "repulse.gcg_pieces": _gcg_pieces,
    "repulse.action_mask": _action_mask,
}
