"""The optimizer steps of one round: the policy's, and beside them the critic's. What they aim at is computed before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from data_processing.errors import DivergedError
from rlhf_core.batching.rows import TokenRow
from rlhf_core.cluster.actors import MiniBatch, UpdateStats
from rlhf_core.cluster.group import Call
from rlhf_core.recipes.online.job import OnlineJob
from rlhf_core.recipes.online.losses import LOGPROBS, CriticObjective, PolicyObjective, ResponseLogprobs
from rlhf_core.recipes.online.metrics import critic_metrics, reference_kl_metrics, sampler_gap_metrics, update_metrics
from rlhf_core.recipes.online.rollouts import Rollouts, mini_batch_plan, mini_batches
from rlhf_core.recipes.online.targets import Targets
from rlhf_core.recipes.online.workers import Workers
from rlhf_core.rewards.compose import Rewards
from rlhf_core.settings.online import OnlineConfig

Wait = Callable[..., list[list[Any]]]


@dataclass(frozen=True)
class Scored:
    """What is known of a round's rollouts before any update; tensors are [B, T].

    `logprobs` are the policy's where they are needed before the update (`scores_policy`), `reference` is given with a KL,
    `values` with a critic, a `teacher`'s log-probs with one.
    """

    rewards: Rewards
    logprobs: Tensor | None
    reference: Tensor | None
    values: Tensor | None
    teacher: Tensor | None


@dataclass(frozen=True)
class Further:
    """Responses that others drew and the policy learns from beside its own; tensors are [B, T], `logprobs` the policy's before the update.

    `own_scale` is what the advantages of its own are multiplied by, so that each kind keeps its own mean in the mean over all.
    """

    rows: list[TokenRow]
    mask: Tensor
    advantages: Tensor
    logprobs: Tensor
    is_valid: list[bool]
    own_scale: float


def trains_policy(config: OnlineConfig, step: int) -> bool:
    """Whether round `step` (from 0) updates the policy: the first rounds may be the critic's alone."""
    return not config.has_critic or step >= config.critic.warmup_steps


def scores_policy(config: OnlineConfig, step: int) -> bool:
    """Whether the policy's log-probs are computed before the update.

    With one mini-batch the first optimizer step sees all rows, and its own forward pass gives them at no cost.
    """
    return config.mini_batches > 1 or config.kl_in("reward") or config.has_teacher or not trains_policy(config, step)


class Updates:
    """Trains the run's actors; `wait` gives the results of their calls."""

    def __init__(self, job: OnlineJob, workers: Workers, wait: Wait) -> None:
        self._job, self._config, self._workers, self._wait = job, job.config, workers, wait

    def run(
        self, step: int, rollouts: Rollouts, scored: Scored, targets: Targets, further: Further | None = None
    ) -> dict[str, float]:
        """All updates of round `step` (from 0), the policy's also on `further` responses; returns what they report.

        Raises `DivergedError` where sampler and trainer are too far apart: before the update where log-probs are known by
        then, else after it, in which case these weights have gone nowhere yet.
        """
        config = self._config
        metrics = {} if scored.logprobs is None else self._see_logprobs(step, rollouts, scored, scored.logprobs, rollouts.mask)
        plan = self._plan(step, [*scored.rewards.is_valid, *(further.is_valid if further else ())])
        critic = self._start_critic(step, rollouts, scored, targets, plan)
        if trains_policy(config, step):
            metrics |= self._train_policy(step, rollouts, scored, targets, plan, further=further)
        if critic:
            assert scored.values is not None and targets.returns is not None, "the critic is trained on both"
            metrics |= critic_metrics(scored.values, targets.returns, rollouts.mask * _column(scored.rewards.is_valid))
            metrics |= update_metrics(self._wait(critic)[0], "critic/")
        return metrics

    def _plan(self, step: int, is_valid: Sequence[bool]) -> list[list[int]]:
        """Row numbers of each optimizer step that round `step` plans; responses without a reward are in none."""
        config = self._config
        plan = mini_batch_plan(
            len(is_valid),
            config.samples_per_prompt,
            passes=config.updates_per_step,
            mini_batches=config.mini_batches,
            seed=self._job.seed,
            step=step,
        )
        return [[i for i in rows if is_valid[i]] for rows in plan]

    def _start_critic(
        self, step: int, rollouts: Rollouts, scored: Scored, targets: Targets, plan: Sequence[Sequence[int]]
    ) -> list[Call]:
        """The critic's updates under way; none without a critic, or without a response to learn from."""
        if "critic" not in self._workers or scored.values is None or targets.returns is None:
            return []
        if not (batches := mini_batches(plan, rollouts.rows, first_step=step * len(plan))):
            return []
        fields = {"values": scored.values, "returns": targets.returns}
        return self._workers["critic"].call(
            "train", CriticObjective(self._config.critic.value_clip), rollouts.rows, fields, batches
        )

    def _train_policy(
        self,
        step: int,
        rollouts: Rollouts,
        scored: Scored,
        targets: Targets,
        plan: Sequence[Sequence[int]],
        *,
        further: Further | None,
    ) -> dict[str, float]:
        objective = PolicyObjective(self._config, targets.kl_coef)
        fields, rows = self._fields(rollouts, scored, targets), rollouts.rows
        if further is not None:
            fields, rows = _with_further(fields, further), [*rows, *further.rows]
        every_row = self._config.every_row_has_a_gradient
        has_gradient = None if every_row else fields["advantages"].any(1).tolist()
        rounds_before = step - (self._config.critic.warmup_steps if self._config.has_critic else 0)
        batches = mini_batches(plan, rows, has_gradient, first_step=rounds_before * len(plan))
        metrics: dict[str, float] = {
            "policy/skipped_share": 1 - sum(len(batch.rows) for batch in batches) / max(1, sum(map(len, plan))),
            "policy/skipped_steps": len(plan) - len(batches),
        }
        if scored.logprobs is not None:
            steps = self._train(objective, rows, fields, batches)
        elif batches:
            steps = self._train(objective, rows, fields, batches[:1])
            fields["old_logprobs"] = logprobs = added([rank[0].outputs for rank in steps])[LOGPROBS]
            own = [number for number in batches[0].rows if number < len(rollouts.rows)]
            seen = torch.zeros_like(rollouts.mask)
            seen[own] = rollouts.mask[own]
            metrics |= self._see_logprobs(step, rollouts, scored, logprobs[: len(seen), : seen.shape[1]], seen)
            rest = self._train(objective, rows, fields, batches[1:])
            steps = [[*first, *more] for first, more in zip(steps, rest, strict=True)]
        else:
            # Nothing is trained, but whether the sampler draws from the policy is still looked at.
            [ranks] = self._wait(self._workers["policy"].call("predict", response_logprobs(self._config), rollouts.rows))
            metrics |= self._see_logprobs(step, rollouts, scored, added(ranks)[LOGPROBS], rollouts.mask)
        return metrics | (update_metrics(steps, "policy/") if batches else {"policy/grad_norm": 0.0})

    def _fields(self, rollouts: Rollouts, scored: Scored, targets: Targets) -> dict[str, Tensor]:
        """What the policy's loss is given beside the rows, each [B, T]."""
        fields = {"advantages": targets.advantages}
        if scored.logprobs is not None:
            fields["old_logprobs"] = scored.logprobs
        if scored.reference is not None and self._config.kl_in("loss"):
            fields["reference_logprobs"] = scored.reference
        if self._config.correction is not None:
            fields["sampler_logprobs"] = rollouts.sampler_logprobs
        return fields

    def _train(
        self, objective: PolicyObjective, rows: Sequence[TokenRow], fields: dict[str, Tensor], batches: list[MiniBatch]
    ) -> list[list[UpdateStats]]:
        return self._wait(self._workers["policy"].call("train", objective, rows, fields, batches))[0]

    def _see_logprobs(self, step: int, rollouts: Rollouts, scored: Scored, logprobs: Tensor, mask: Tensor) -> dict[str, float]:
        """How far the policy, before its updates, is from the sampler and the reference, over the tokens of `mask`."""
        metrics = sampler_gap_metrics(logprobs, rollouts.sampler_logprobs, mask)
        check_sampler(f"round {step + 1}", metrics, self._config, self._workers.engine)
        return metrics if scored.reference is None else metrics | reference_kl_metrics(logprobs, scored.reference, mask)


def check_sampler(where: str, metrics: Mapping[str, float], config: OnlineConfig, engine: str) -> None:
    """Raise `DivergedError` where what was drawn is too far from what the trainer computes: `metrics` are of `sampler_gap_metrics`."""
    gap, limit = metrics["logprob_gap/mean"], config.rollout.max_logprob_gap
    if not gap <= limit:
        raise DivergedError(
            f"{where}: sampler and trainer log-probs differ by {gap:.3g} nats a token on average "
            f"(at most {metrics['logprob_gap/max']:.3g}), more than rollout.max_logprob_gap={limit}: the responses are not "
            "the policy's own. Likely causes: weights that did not reach the sampler, another attention or precision "
            f"there (sampling with {engine}), or a model that the sampler computes differently; with "
            "async_steps also a learning rate that takes the policy too far in one round. "
            "Try rollout.engine 'hf' or engine.dtype 'fp32' to tell which; raise the limit only if you know why"
        )


def _with_further(fields: Mapping[str, Tensor], further: Further) -> dict[str, Tensor]:
    """The fields of the policy's own responses with those of others behind them. Nothing is corrected or clipped of those."""
    theirs = dict.fromkeys(fields, further.logprobs) | {"advantages": further.advantages}
    own = dict(fields) | {"advantages": fields["advantages"] * further.own_scale}
    width = max(value.shape[1] for value in (*own.values(), *theirs.values()))
    return {
        name: torch.cat([functional.pad(value, (0, width - value.shape[1])) for value in (own[name], theirs[name])])
        for name in own
    }


def added(ranks: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Of each name one tensor from those of all ranks: each gives its own rows and zeros elsewhere, or nothing where it has none."""
    names = {name for rank in ranks for name in rank}
    return {name: torch.stack([rank[name] for rank in ranks if name in rank]).sum(0) for name in names}


def _column(flags: Sequence[bool]) -> Tensor:
    """[B, 1], 1 where the flag is set."""
    return torch.tensor(flags, dtype=torch.float32)[:, None]


def response_logprobs(config: OnlineConfig) -> ResponseLogprobs:
    """The policy's scoring pass, at the temperature that responses are drawn with."""
    return ResponseLogprobs(config.rollout.temperature)
