"""Online training: sample, score, compute advantages, update, send the weights to the sampler. One controller, many actors.

Read `run_online` and `_round` top to bottom for the method; the pieces live beside this file (`online_*.py`) and below.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from data_processing.errors import ConfigError, DivergedError, PreemptedError
from rlhf_core.batching.templates import Renderer
from rlhf_core.cluster.group import Call, Group, wait
from rlhf_core.models.load import check_model_folder, load_tokenizer
from rlhf_core.recipes.online_alarms import Alarms, useless_conditions
from rlhf_core.recipes.online_checkpoints import check_same_run, checkpoint_folder, latest_checkpoints
from rlhf_core.recipes.online_job import OnlineJob
from rlhf_core.recipes.online_losses import CriticObjective, PolicyObjective, ResponseLogprobs, ResponseValues
from rlhf_core.recipes.online_methods import METHODS, Method
from rlhf_core.recipes.online_metrics import (
    Stopwatch,
    critic_metrics,
    policy_gap_metrics,
    rollout_metrics,
    round_line,
    update_metrics,
)
from rlhf_core.recipes.online_rollouts import (
    Prompt,
    Rollouts,
    collect_rollouts,
    digest,
    mini_batch_plan,
    prompts_of_step,
    read_prompts,
    write_rollouts,
)
from rlhf_core.recipes.online_targets import Targets, compute_targets
from rlhf_core.recipes.online_workers import Workers, start_workers
from rlhf_core.recipes.stop import stop_requested
from rlhf_core.rewards.compose import Rewards
from rlhf_core.rollout.base import Sampling


def run_online(job: OnlineJob) -> None:
    """Run all rounds from the latest checkpoint on, and write the policy as a checkpoint artifact with its rollouts.

    Raises `ConfigError` and `DataError` for what cannot work, `DivergedError` for NaN, for a sampler too far from the
    trainer and for rounds that teach nothing, `PreemptedError` after saving when asked to stop, `ActorFailedError` with
    the actor's traceback when one dies.
    """
    check_job(job)
    tokenizer = load_tokenizer(job.model, trust_remote_code=job.trust_remote_code)
    renderer = Renderer(tokenizer)
    prompts = read_prompts(job, renderer)
    with start_workers(job, tokenizer.pad_token_id) as workers:
        OnlineRun(job, METHODS[job.config.method], workers, renderer, prompts).train()


def check_job(job: OnlineJob) -> None:
    """Raise `ConfigError` for settings that contradict each other or the inputs, before anything is started."""
    config = job.config
    check_model_folder(job.model, trust_remote_code=job.trust_remote_code, max_length_tokens=config.max_length_tokens)
    if config.lora.dropout > 0:
        raise ConfigError(
            f"lora.dropout={config.lora.dropout} in online training: policy ratios need the same network in every pass; use 0"
        )
    if config.rollout.max_new_tokens >= config.max_length_tokens:
        raise ConfigError(
            f"rollout.max_new_tokens={config.rollout.max_new_tokens} leaves no room for a prompt in "
            f"max_length_tokens={config.max_length_tokens}: lower the first or raise the second"
        )
    if config.critic_warmup_steps >= config.steps:
        raise ConfigError(
            f"critic_warmup_steps={config.critic_warmup_steps} of steps={config.steps} rounds would never train the policy: lower it"
        )
    if any(source.kind == "reward_model" for source in config.rewards) and job.reward_model is None:
        raise ConfigError(
            "rewards: kind 'reward_model' needs a reward model, and this run has none: add the reward_model stage, or use another kind"
        )


@dataclass(frozen=True)
class Scored:
    """What is known of a round's rollouts before any update; tensors are [B, T]. `values` only with a critic."""

    rewards: Rewards
    logprobs: Tensor
    reference: Tensor
    values: Tensor | None


@dataclass
class OnlineRun:
    """One online run: what it is made of, and how far it is."""

    job: OnlineJob
    method: Method
    workers: Workers
    renderer: Renderer
    prompts: list[Prompt]
    alarms: Alarms = field(init=False)

    def __post_init__(self) -> None:
        self.alarms = Alarms(self.job.events)

    def train(self) -> None:
        """All rounds that are left, then the artifact."""
        job, total = self.job, self.job.config.steps
        done = self._resume()
        job.events.progress(done, total, f"sampling with {self.workers.engine} from {len(self.prompts)} prompts")
        for step in range(done, total):
            if stop_requested(job.resume):
                self._save(step)
                raise PreemptedError(f"asked to stop after {step} of {total} rounds; a checkpoint is saved to go on from")
            metrics = self._round(step)
            job.events.metrics(step + 1, metrics)
            job.events.progress(step + 1, total, f"round {step + 1}/{total}: {round_line(metrics)}")
            every = job.config.checkpoint_every_steps
            if every and (step + 1) % every == 0 and step + 1 < total:
                self._save(step + 1)
        self._finish()

    def _round(self, step: int) -> dict[str, float]:
        """Round `step` (from 0): returns its metrics."""
        clock = Stopwatch()
        rollouts = self._sample(step)
        clock.lap("generate")
        scored = self._score(step, rollouts)
        metrics = rollout_metrics(rollouts, scored.rewards, self.job.config.samples_per_prompt)
        metrics |= policy_gap_metrics(rollouts, scored.logprobs, scored.reference)
        self._check_sampler(step, metrics)
        clock.lap("score")
        targets = compute_targets(
            self.method,
            self.job.config,
            scored.rewards.total,
            mask=rollouts.mask,
            logprobs=scored.logprobs,
            reference=scored.reference,
            values=scored.values,
        )
        metrics |= self._update(step, rollouts, scored, targets)
        clock.lap("update")
        self._send_weights(step + 1)
        clock.lap("sync")
        self.alarms.check(step, useless_conditions(self.job.config, metrics))
        tokens = float(rollouts.mask.sum())
        return metrics | clock.seconds() | {"generated_tokens_per_s": tokens / clock.laps["generate"]}

    def _sample(self, step: int) -> Rollouts:
        """The round's responses, all drawn with the weights of this round."""
        config = self.job.config
        prompts = prompts_of_step(self.prompts, step, config.prompts_per_step, self.job.seed)
        sampling = Sampling(
            temperature=config.rollout.temperature,
            max_new_tokens=config.rollout.max_new_tokens,
            n=config.samples_per_prompt,
            greedy=False,
            stop_ids=tuple(self.renderer.stop_ids),
        )
        # Rounds are as many seeds apart as they draw responses; runs with neighbouring seeds are far from one another.
        seed = (self.job.seed * 1_000_003 + step * len(prompts) * config.samples_per_prompt) % 2**31
        [[groups]] = self._wait(self.workers.rollout.call("generate", [prompt.ids for prompt in prompts], sampling, seed))
        stale = {g.weight_version for group in groups for g in group} - {step}
        if stale:
            raise RuntimeError(f"round {step + 1} got responses drawn with weights of version {sorted(stale)}, not {step}")
        return collect_rollouts(prompts, groups, self.renderer)

    def _score(self, step: int, rollouts: Rollouts) -> Scored:
        """Rewards, policy log-probs, reference log-probs and values of the rollouts, computed side by side."""
        workers, rows = self.workers, rollouts.rows
        forward = ResponseLogprobs(self.job.config.rollout.temperature)
        calls = [
            workers.policy.call("predict", forward, rows),
            workers.reference.call("predict", forward, rows),
            workers.reward.call("score", rollouts.responses),
        ]
        if workers.critic is not None:
            calls.append(workers.critic.call("predict", ResponseValues(), rows))
        try:
            policy, reference, [rewards], *critic = self._wait(*calls)
        except DivergedError:
            nothing = [math.nan] * len(rows)
            write_rollouts(self.job.resume / "bad_rollouts.parquet", step + 1, rollouts, nothing, {})
            raise
        folder = self.job.resume / "rollouts"
        write_rollouts(folder / f"step-{step + 1:05d}.parquet", step + 1, rollouts, rewards.total, rewards.by_source)
        # Every rank gives its own rows and zeros elsewhere.
        values = sum(critic[0]) if critic else None
        return Scored(rewards, sum(policy), reference[0], values)

    def _update(self, step: int, rollouts: Rollouts, scored: Scored, targets: Targets) -> dict[str, float]:
        """Train the policy, and beside it the critic, on the round's rollouts; returns what both report."""
        config, workers = self.job.config, self.workers
        plan = mini_batch_plan(len(rollouts.rows), config.updates_per_step, config.mini_batches, self.job.seed, step)
        calls: dict[str, list[Call]] = {}
        metrics: dict[str, float] = {}
        if workers.critic is not None and scored.values is not None and targets.returns is not None:
            fields = {"values": scored.values, "returns": targets.returns}
            calls["critic/"] = workers.critic.call("train", CriticObjective(config.value_clip), rollouts.rows, fields, plan)
            metrics |= critic_metrics(scored.values, targets.returns, rollouts.mask)
        if workers.critic is None or step >= config.critic_warmup_steps:
            fields = {
                "old_logprobs": scored.logprobs,
                "reference_logprobs": scored.reference,
                "advantages": targets.advantages,
            }
            calls["policy/"] = workers.policy.call("train", PolicyObjective(self.method, config), rollouts.rows, fields, plan)
        try:
            results = self._wait(*calls.values())
        except DivergedError:
            shutil.copy2(self.job.resume / "rollouts" / f"step-{step + 1:05d}.parquet", self.job.resume / "bad_rollouts.parquet")
            raise
        for prefix, per_rank in zip(calls, results, strict=True):
            metrics |= update_metrics(per_rank, prefix)
        return metrics

    def _send_weights(self, version: int) -> None:
        """Give the sampler the policy's weights; they go from actor to actor, not through this process."""
        ranks = self.workers.policy.call("weights", self.job.config.engine.dtype)
        update = self.workers.rollout.call("update_weights", ranks[0].ref, version)
        self._wait(update)

    def _check_sampler(self, step: int, metrics: dict[str, float]) -> None:
        gap, limit = metrics["logprob_gap/mean"], self.job.config.rollout.max_logprob_gap
        if not gap <= limit:
            raise DivergedError(
                f"round {step + 1}: sampler and trainer log-probs differ by {gap:.3g} nats a token on average "
                f"(at most {metrics['logprob_gap/max']:.3g}), more than rollout.max_logprob_gap={limit}: the responses are not "
                "the policy's own. Likely causes: weights that did not reach the sampler, another attention or precision "
                f"there (sampling with {self.workers.engine}), or a model that the sampler computes differently. "
                "Try rollout.engine 'hf' or engine.dtype 'fp32' to tell which; raise the limit only if you know why"
            )

    def _resume(self) -> int:
        """Rounds done by earlier attempts; loads their state and sends the weights to the sampler."""
        found = latest_checkpoints(self.job.resume, list(self._trained))
        if found is None:
            return 0
        loaded = self._wait(*[group.call("load", found[role]) for role, group in self._trained.items()])
        state = loaded[0][0]
        check_same_run(state, self._identity(), found["policy"])
        self.alarms.counts = dict(state["alarms"])
        self._send_weights(state["step"])
        return int(state["step"])

    def _save(self, step: int) -> None:
        """Keep the state after `step` rounds: the policy last, so that its checkpoint is never without its critic's."""
        state = {"step": step, "alarms": self.alarms.counts, **self._identity()}
        for role, group in reversed(self._trained.items()):
            self._wait(group.call("save", checkpoint_folder(self.job.resume, role, step), state))

    @property
    def _trained(self) -> dict[str, Group]:
        critic = self.workers.critic
        return {"policy": self.workers.policy} | ({"critic": critic} if critic is not None else {})

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint must agree with to be gone on from."""
        return {"prompts_sha256": digest(self.prompts), "settings": {**self.job.config.result_fields(), "seed": self.job.seed}}

    def _finish(self) -> None:
        self._wait(self.workers.policy.call("save_final", self.job.output))
        shutil.copytree(self.job.resume / "rollouts", self.job.output / "rollouts", dirs_exist_ok=True)

    def _wait(self, *calls: Sequence[Call]) -> list[list[Any]]:
        return wait(*calls, timeout_s=self.job.config.stall_after_s)
