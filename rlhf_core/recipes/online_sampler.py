"""Who asks the generation actor for which round, and with which weights: one round at a time, or one ahead of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rlhf_core.batching.templates import Renderer
from rlhf_core.cluster.group import Call, wait
from rlhf_core.cluster.rollout_actor import Sampled
from rlhf_core.recipes.online_job import OnlineJob
from rlhf_core.recipes.online_rollouts import Prompt, Rollouts, collect_rollouts, prompts_of_step
from rlhf_core.recipes.online_workers import Workers
from rlhf_core.rollout.base import Generation, Sampling


class Sampler:
    """Draws the rounds' responses. At most one round is in flight, and weights are sent only while none is.

    The weights' version is the number of rounds that they have been trained for.
    """

    def __init__(self, job: OnlineJob, workers: Workers, renderer: Renderer, prompts: Sequence[Prompt]) -> None:
        self._job, self._workers, self._renderer, self._prompts = job, workers, renderer, prompts
        self._sent_version = 0
        self._calls: list[Call] = []
        self._step: int | None = None
        self._sampled: Sampled | None = None

    @property
    def in_flight(self) -> list[Call]:
        """The call that is being worked on, if any: whoever waits for something else should notice when it fails."""
        return self._calls

    def begin(self, step: int, version: int) -> None:
        """Start drawing round `step` (from 0) with the policy's present weights, of `version`; nothing if it is begun."""
        if self._step == step:
            return
        if version != self._sent_version:
            self._send_weights(version)
        config, prompts = self._job.config, self._prompts_of(step)
        sampling = Sampling(
            temperature=config.rollout.temperature,
            max_new_tokens=config.rollout.max_new_tokens,
            n=config.samples_per_prompt,
            greedy=False,
            stop_ids=tuple(self._renderer.stop_ids),
        )
        # Rounds are as many seeds apart as they draw responses; runs with neighbouring seeds are far from one another.
        seed = (self._job.seed * 1_000_003 + step * len(prompts) * config.samples_per_prompt) % 2**31
        self._calls = self._workers.rollout.call("generate", [prompt.ids for prompt in prompts], sampling, seed)
        self._step = step

    def collect(self, step: int) -> Rollouts:
        """The responses of round `step`, which has been begun. Raises `RuntimeError` for weights older than `async_steps`."""
        assert self._step == step, f"round {self._step} was begun, not {step}"
        sampled = self._wait()
        self._step = self._sampled = None
        rollouts = collect_rollouts(self._prompts_of(step), sampled, self._renderer)
        allowed = range(step - self._job.config.async_steps, step + 1)
        versions = {generation.weight_version for generation in rollouts.generations}
        if not versions <= set(allowed):
            raise RuntimeError(
                f"round {step + 1} got responses drawn with weights of versions {sorted(versions)}; allowed are "
                f"{allowed.start} to {step}, as online.async_steps is {self._job.config.async_steps}"
            )
        return rollouts

    def state(self) -> dict[str, Any] | None:
        """The round in flight, drawn to its end, as JSON; None if there is none. It stays to be collected."""
        return None if self._step is None else {"step": self._step, **asdict(self._wait())}

    def restore(self, state: dict[str, Any] | None) -> None:
        """Go on as if the round that `state` describes had just been drawn."""
        if state is not None:
            self._step = state["step"]
            groups = [[Generation(**generation) for generation in group] for group in state["groups"]]
            self._sampled = Sampled(groups, state["seconds"])

    def _prompts_of(self, step: int) -> list[Prompt]:
        return prompts_of_step(self._prompts, step, self._job.config.prompts_per_step, self._job.seed)

    def _wait(self) -> Sampled:
        if self._sampled is None:
            [[self._sampled]] = wait(self._calls, timeout_s=self._job.config.stall_after_s)
            self._calls = []
        return self._sampled

    def _send_weights(self, version: int) -> None:
        """Give the actor the policy's weights; they go from actor to actor, not through this process."""
        ranks = self._workers.policy.call("weights", self._job.config.engine.dtype)
        wait(self._workers.rollout.call("update_weights", ranks[0].ref, version), timeout_s=self._job.config.stall_after_s)
        self._sent_version = version
