"""The numbers of a round: what the sampler drew, what it earned, how far the policy went, what the updates did."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rlhf_core.cluster.actors import UpdateStats
from rlhf_core.recipes.online_rollouts import Rollouts
from rlhf_core.rewards.compose import Rewards


def rollout_metrics(rollouts: Rollouts, rewards: Rewards, samples_per_prompt: int) -> dict[str, float]:
    """Rewards by source, lengths (tokens), and the shares that tell a sampler or a reward that teaches nothing."""
    total = torch.tensor(rewards.total, dtype=torch.float64)
    groups = total.view(-1, samples_per_prompt)
    lengths = rollouts.mask.sum(1)
    metrics = {
        "reward/mean": total.mean(),
        "reward/std": total.std(correction=0),
        "reward/min": total.min(),
        "reward/max": total.max(),
        "zero_variance_share": (groups == groups[:, :1]).all(1).double().mean(),
        "response_tokens/mean": lengths.mean(),
        "response_tokens/max": lengths.max(),
    }
    for name, values in rewards.by_source.items():
        source = torch.tensor(values, dtype=torch.float64)
        metrics |= {f"reward/{name}/mean": source.mean(), f"reward/{name}/std": source.std(correction=0)}
    return {name: float(value) for name, value in metrics.items()} | {"truncated_share": rollouts.truncated_share}


def policy_gap_metrics(rollouts: Rollouts, logprobs: Tensor, reference: Tensor) -> dict[str, float]:
    """Sampler against trainer, and policy against reference; both [B, T] log-probs (nats) under the weights that sampled."""
    mask = rollouts.mask.bool()
    gap = (logprobs - rollouts.sampler_logprobs)[mask]
    to_reference = (logprobs - reference) * rollouts.mask
    return {
        "logprob_gap/mean": float(gap.abs().mean()),
        "logprob_gap/max": float(gap.abs().max()),
        "logprob_gap/ratio": float(gap.exp().mean()),
        "kl/token": float(to_reference.sum() / rollouts.mask.sum()),
        "kl/sequence": float(to_reference.sum(1).mean()),
    }


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
    """Means over the round's optimizer steps of what the losses reported, and the last learning rate."""
    steps = [
        {name: sum(rank[k].shares.get(name, 0.0) for rank in per_rank) for name in first.shares}
        for k, first in enumerate(per_rank[0])
    ]
    metrics = {f"{prefix}{name}": _mean([step[name] for step in steps]) for name in steps[0]}
    norms = [stats.grad_norm for stats in per_rank[0]]
    return metrics | {f"{prefix}grad_norm": _mean(norms), f"{prefix}learning_rate": per_rank[0][-1].learning_rate}


def round_line(metrics: Mapping[str, float]) -> str:
    """One line for people."""
    sources = ", ".join(
        f"{name.split('/')[1]} {value:.3f}" for name, value in metrics.items() if name.count("/") == 2 and name.endswith("/mean")
    )
    return (
        f"reward {metrics['reward/mean']:.3f} ({sources}), kl {metrics['kl/sequence']:.3f} nats a response, "
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
        """End the phase `name`."""
        now = time.monotonic()
        self.laps[name] = now - self._last
        self._last = now

    def seconds(self) -> dict[str, float]:
        """Each phase and the whole, as metrics."""
        return {f"seconds/{name}": s for name, s in self.laps.items()} | {"seconds/round": self._last - self._start}
