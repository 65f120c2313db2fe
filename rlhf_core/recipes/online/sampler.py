"""Who asks the generation actor for which round, and with which weights: one round at a time, or one ahead of training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rlhf_core.batching.templates import Renderer
from rlhf_core.cluster.group import Call, are_done, wait
from rlhf_core.cluster.rollout_actor import Sampled
from rlhf_core.recipes.online.job import OnlineJob
from rlhf_core.recipes.online.rollouts import Prompt, Rollouts, collect_rollouts, prompts_of_step
from rlhf_core.recipes.online.workers import Workers
from rlhf_core.rollout.base import Generation, Sampling


@dataclass
class _Round:
    """A round that was begun with weights of `version`: in flight as long as there are calls."""

    version: int
    calls: list[Call]
    sampled: Sampled | None = None


class Sampler:
    """Draws the rounds' responses. At most one round is in flight, and weights are sent only while none is.

    A round is kept until it was trained on (`forget`). The weights' version is the number of rounds that they have been
    trained for.
    """

    def __init__(self, job: OnlineJob, workers: Workers, renderer: Renderer, prompts: Sequence[Prompt]) -> None:
        self._job, self._workers, self._renderer, self._prompts = job, workers, renderer, prompts
        self._sent_version = 0
        self._rounds: dict[int, _Round] = {}

    @property
    def in_flight(self) -> list[Call]:
        """The calls that are being worked on, if any: whoever waits for something else should notice when one fails."""
        return [call for drawn in self._rounds.values() for call in drawn.calls]

    def begin(self, step: int, version: int) -> None:
        """Start drawing round `step` (from 0) with the policy's present weights, of `version`; nothing if it is begun."""
        if step in self._rounds:
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
        calls = self._workers.rollout.call("generate", [prompt.ids for prompt in prompts], sampling, seed)
        self._rounds[step] = _Round(version, calls)

    def collect(self, step: int, meanwhile: Callable[[], None] | None = None) -> Rollouts:
        """The responses of round `step`, which has been begun. Raises `RuntimeError` for weights older than `async_steps`.

        `meanwhile` is called while waiting for them, as by `wait`.
        """
        sampled = self._drawn(self._rounds[step], meanwhile)
        rollouts = collect_rollouts(self._prompts_of(step), sampled, self._renderer, step)
        allowed = range(step - self._job.config.async_steps, step + 1)
        versions = {generation.weight_version for generation in rollouts.generations}
        if not versions <= set(allowed):
            raise RuntimeError(
                f"round {step + 1} got responses drawn with weights of versions {sorted(versions)}; allowed are "
                f"{allowed.start} to {step}, as online.async_steps is {self._job.config.async_steps}"
            )
        return rollouts

    def forget(self, step: int) -> None:
        """Round `step` was trained on."""
        del self._rounds[step]

    def owes(self, version: int) -> bool:
        """Whether a round is being drawn that weights of `version` could not draw again: older ones draw it."""
        return any(drawn.calls and drawn.version < version and not are_done(drawn.calls) for drawn in self._rounds.values())

    def settle(self, version: int) -> None:
        """Have the rounds that weights of `version` could not draw again drawn to their end."""
        for drawn in self._rounds.values():
            if drawn.version < version:
                self._drawn(drawn)

    def state(self) -> list[dict[str, Any]]:
        """The rounds that are known to be drawn and not yet trained on, as JSON. They stay to be collected."""
        return [{"step": step, **asdict(drawn.sampled)} for step, drawn in self._rounds.items() if drawn.sampled]

    def restore(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Go on as if the rounds that `state` describes had just been drawn."""
        for entry in state:
            groups = [[Generation(**generation) for generation in group] for group in entry["groups"]]
            self._rounds[entry["step"]] = _Round(groups[0][0].weight_version, [], Sampled(groups, entry["seconds"]))

    def _prompts_of(self, step: int) -> list[Prompt]:
        return prompts_of_step(self._prompts, step, self._job.config.prompts_per_step, self._job.seed)

    def _drawn(self, drawn: _Round, meanwhile: Callable[[], None] | None = None) -> Sampled:
        if drawn.sampled is None:
            [[drawn.sampled]] = wait(drawn.calls, timeout_s=self._job.config.stall_after_s, meanwhile=meanwhile)
            drawn.calls = []
        return drawn.sampled

    def _send_weights(self, version: int) -> None:
        """Give the actor the policy's weights; they go from actor to actor, not through this process."""
        ranks = self._workers.policy.call("weights", self._job.config.engine.precision)
        wait(self._workers.rollout.call("update_weights", ranks[0].ref, version), timeout_s=self._job.config.stall_after_s)
        self._sent_version = version
