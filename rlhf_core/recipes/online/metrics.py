"""The numbers of a round: what the sampler drew, what it earned, how far the policy went, what the updates did."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rlhf_core.cluster.actors import UpdateStats
from rlhf_core.recipes.online.rollouts import Rollouts
from rlhf_core.rewards.compose import Rewards


def rollout_metrics(rollouts: Rollouts, rewards: Rewards, samples_per_prompt: int, step: int) -> dict[str, float]:
    """Rewards, in all and by source, of the responses that have one; lengths (tokens), and the shares that tell a sampler or a reward that teaches nothing.

    `sampled_entropy` is the mean -log-prob (nats) of what was drawn: an unbiased estimate of the policy's entropy a token.
    `staleness` is how many rounds of training the weights that drew round `step` (from 0) lack.
    """
    lengths = rollouts.mask.sum(1)
    metrics = {
        **_spread("reward", rewards.worth, "mean", "std", "min", "max"),
        "response_tokens/mean": lengths.mean(),
        "response_tokens/max": lengths.max(),
        "sampled_entropy": -rollouts.sampler_logprobs.sum() / lengths.sum(),
    }
    for name, values in rewards.by_source.items():
        metrics |= _spread(f"reward/{name}", values, "mean", "std")
    for name, values in rewards.metrics.items():
        metrics |= _spread(f"reward/{name}", values, "mean")
    return {name: float(value) for name, value in metrics.items()} | {
        "reward/invalid_share": rewards.invalid_share,
        "zero_variance_share": len(flat_groups(rewards.worth, samples_per_prompt)) * samples_per_prompt / len(rewards.total),
        "drawn_share": rollouts.n_drawn / len(rewards.total),
        "truncated_share": rollouts.truncated_share,
        "staleness": float(step - min(generation.weight_version for generation in rollouts.generations)),
        "seconds/generate": rollouts.seconds,
        "generated_tokens_per_s": float(lengths.sum()) / rollouts.seconds,
    }


def flat_groups(rewards: Sequence[float | None], samples_per_prompt: int) -> list[int]:
    """Numbers of the groups whose rewards are all equal, or which have fewer than two: they teach a group method nothing."""
    groups = [rewards[i : i + samples_per_prompt] for i in range(0, len(rewards), samples_per_prompt)]
    return [number for number, group in enumerate(groups) if len(set(group) - {None}) < 2]


def _spread(prefix: str, values: Sequence[float | None], *names: str) -> dict[str, Tensor]:
    """Statistics of the numbers among `values`; none where there is no number."""
    numbers = torch.tensor([value for value in values if value is not None], dtype=torch.float64)
    numbers = numbers[~numbers.isnan()]
    if not len(numbers):
        return {}
    found = {"mean": numbers.mean(), "std": numbers.std(correction=0), "min": numbers.min(), "max": numbers.max()}
    return {f"{prefix}/{name}": found[name] for name in names}


def sampler_gap_metrics(logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor) -> dict[str, float]:
    """Trainer against sampler: both [B, T] log-probs (nats), the trainer's before the round's updates."""
    gap = (logprobs - sampler_logprobs)[mask.bool()]
    return {
        "logprob_gap/mean": float(gap.abs().mean()),
        "logprob_gap/max": float(gap.abs().max()),
        "logprob_gap/ratio": float(gap.exp().mean()),
        # k3 of the trainer's policy from the sampler's, on what that drew: never below 0.
        "mismatch_kl": float((gap.exp() - 1 - gap).mean()),
    }


def reference_kl_metrics(logprobs: Tensor, reference: Tensor, mask: Tensor) -> dict[str, float]:
    """Policy, before the round's updates, against reference; both [B, T] log-probs (nats)."""
    difference = (logprobs - reference) * mask
    return {"kl/token": float(difference.sum() / mask.sum()), "kl/sequence": float(difference.sum(1).mean())}


def teacher_kl_metrics(logprobs: Tensor, teacher: Tensor, mask: Tensor) -> dict[str, float]:
    """Policy, before the round's updates, against teacher, on what the policy drew; both [B, T] log-probs (nats)."""
    return {"teacher_kl/token": float(((logprobs - teacher) * mask).sum() / mask.sum())}


def critic_metrics(values: Tensor, returns: Tensor, mask: Tensor) -> dict[str, float]:
    """How well the values [B, T] foresaw the returns [B, T] before this round's updates."""
    valid = mask.bool()
    residual, target = (returns - values)[valid], returns[valid]
    variance = target.var(correction=0).clamp_min(1e-8)
    return {
        "critic/explained_variance": float(1 - residual.var(correction=0) / variance),
        "critic/value_mean": float(values[valid].mean()),
        "critic/return_mean": float(target.mean()),
    }


def update_metrics(per_rank: Sequence[Sequence[UpdateStats]], prefix: str) -> dict[str, float]:
    """Means over the round's optimizer steps of what the losses reported, the last learning rate, and their seconds."""
    steps = [
        {name: sum(rank[k].shares.get(name, 0.0) for rank in per_rank) for name in first.shares}
        for k, first in enumerate(per_rank[0])
    ]
    metrics = {f"{prefix}{name}": _mean([step[name] for step in steps]) for name in steps[0]}
    norms = [stats.grad_norm for stats in per_rank[0]]
    seconds = sum(max(rank[k].seconds for rank in per_rank) for k in range(len(norms)))
    return metrics | {
        f"{prefix}grad_norm": _mean(norms),
        f"{prefix}learning_rate": per_rank[0][-1].learning_rate,
        f"{prefix}seconds": seconds,
    }


def round_line(metrics: Mapping[str, float]) -> str:
    """One line for people."""
    sources = ", ".join(
        f"{name.split('/')[1]} {value:.3f}" for name, value in metrics.items() if name.count("/") == 2 and name.endswith("/mean")
    )
    kl = f"kl {metrics['kl/sequence']:.3f} nats a response, " if "kl/sequence" in metrics else ""
    reward = f"reward {metrics['reward/mean']:.3f} ({sources})" if "reward/mean" in metrics else "no reward"
    return (
        f"{reward}, {kl}"
        f"{metrics['response_tokens/mean']:.0f} tokens, {metrics['truncated_share']:.0%} cut, "
        f"{metrics['seconds/round']:.1f} s"
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


class Stopwatch:
    """Seconds between laps."""

    def __init__(self) -> None:
        self._start = self._last = time.monotonic()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """End a phase `name`; phases of one name add up."""
        now = time.monotonic()
        self.laps[name] = self.laps.get(name, 0.0) + now - self._last
        self._last = now

    def seconds(self) -> dict[str, float]:
        """Each phase and the whole, as metrics."""
        return {f"seconds/{name}": s for name, s in self.laps.items()} | {"seconds/round": self._last - self._start}
