"""Who asks the generation actor for which round, and with which weights: one round at a time, or some ahead of training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rlhf_core.batching.templates import Renderer
from rlhf_core.cluster.group import Call, are_done, wait
from rlhf_core.cluster.rollout_actor import Sampled
from rlhf_core.recipes.online.job import OnlineJob
from rlhf_core.recipes.online.rollouts import Rollouts, collect_rollouts
from rlhf_core.recipes.online.scored_ahead import ScoredAhead
from rlhf_core.recipes.online.workers import Workers
from rlhf_core.recipes.prompts import Prompt
from rlhf_core.recipes.row_order import RowOrder
from rlhf_core.rollout.base import Generation, Sampling


@dataclass
class _Round:
    """A round that was begun with weights of `version`, on prompts from place `first` on: in flight as long as there are calls.

    `refills` are the places of further prompts that were drawn for it, of which this attempt has `used` some: a round that is done again
    takes the same ones.
    """

    version: int
    first: int
    calls: list[Call]
    sampled: Sampled | None = None
    refills: list[int] = field(default_factory=list)
    used: int = 0


class Sampler:
    """Draws the rounds' responses. The actor works on calls in their order, so weights reach it between the rounds they belong to.

    A round is kept until it was trained on (`forget`). The weights' version is the number of rounds that they have been
    trained for.
    """

    def __init__(self, job: OnlineJob, workers: Workers, renderer: Renderer, prompts: Sequence[Prompt]) -> None:
        self._job, self._workers, self._renderer, self._prompts_table = job, workers, renderer, prompts
        n_seen = job.config.steps * job.config.prompts_per_step
        self._order = RowOrder(job.config.order, prompts, job.seed, n_seen)
        # None where the actor has weights that no round is drawn with.
        self._sent_version: int | None = 0
        self._sending: list[Call] = []
        self._next_prompt = 0
        # Where rounds begin that a checkpoint knows of and that are to be drawn anew.
        self._begun: dict[int, int] = {}
        self._rounds: dict[int, _Round] = {}
        self._apart: list[Call] = []
        self._proposed: list[Call] = []

    @property
    def in_flight(self) -> list[Call]:
        """The calls that are being worked on, if any: whoever waits for something else should notice when one fails."""
        if self._sending and are_done(self._sending):
            wait(self._sending, timeout_s=self._job.config.stall_after_s)
            self._sending = []
        return [*self._sending, *self._apart, *self._proposed, *(call for drawn in self._rounds.values() for call in drawn.calls)]

    def begin(self, step: int, version: int) -> None:
        """Start drawing round `step` (from 0) with the policy's present weights, of `version`; nothing if it is begun."""
        if step in self._rounds:
            return
        if version != self._sent_version:
            self._send_weights(version)
        count = self._job.config.prompts_per_step
        first = self._begun.pop(step) if step in self._begun else self._take(count)
        self._rounds[step] = _Round(version, first, self._draw(step, first, count))

    def draw_again(self, step: int, count: int, meanwhile: Callable[[], None] | None = None) -> Rollouts:
        """Responses to `count` further prompts for round `step`, drawn with the weights that the round starts from."""
        if step != self._sent_version:
            self._send_weights(step)
        round_ = self._rounds[step]
        if round_.used == len(round_.refills):
            round_.refills.append(self._take(count))
        first = round_.refills[round_.used]
        round_.used += 1
        [[sampled]] = wait(
            self._draw(step, first, count), timeout_s=self._job.config.stall_after_s, beside=self.in_flight, meanwhile=meanwhile
        )
        return collect_rollouts(self._prompts(first, count), sampled, self._renderer, step)

    def draw_apart(self, prompts: Sequence[Prompt], version: int, *, greedy: bool, averaged: bool) -> None:
        """Start drawing one answer to each of `prompts` that is no round's, with the policy's present weights, of `version`.

        Or with their moving average. What was asked for before comes first; `collect_apart` waits for it.
        """
        if averaged or version != self._sent_version:
            self._send_weights(version, averaged=averaged)
        self._apart = self._call(prompts, self._job.seed % 2**31, n=1, greedy=greedy)

    def collect_apart(self) -> Sampled:
        """What `draw_apart` was asked for."""
        [[sampled]] = wait(self._apart, timeout_s=self._job.config.stall_after_s)
        self._apart = []
        found: Sampled = sampled
        return found

    def draw_proposals(self, prompts: Sequence[Prompt], step: int, number: int) -> None:
        """Start drawing responses of the proposal to these prompts, the `number`-th (from 0) such draw of round `step`."""
        samples = self._job.config.samples_per_prompt
        draws = step * self._job.config.repulse.proposal_updates + number
        # Far from the seeds of rounds: the policy's draws and these must not be the same where the two policies are.
        seed = (self._job.seed * 1_000_003 + 2**30 + draws * self._job.config.prompts_per_step * samples) % 2**31
        self._send_weights(step, role="proposal")
        self._proposed = self._call(prompts, seed, n=samples, greedy=False)

    def collect_proposals(self, prompts: Sequence[Prompt], step: int, meanwhile: Callable[[], None] | None = None) -> Rollouts:
        """What `draw_proposals` was asked for."""
        [[sampled]] = wait(self._proposed, timeout_s=self._job.config.stall_after_s, meanwhile=meanwhile)
        self._proposed = []
        return collect_rollouts(prompts, sampled, self._renderer, step)

    def _take(self, count: int) -> int:
        """The place of the next `count` prompts, which nobody else gets."""
        first = self._next_prompt
        self._next_prompt += count
        return first

    def _draw(self, step: int, first: int, count: int) -> list[Call]:
        """Start drawing for `count` prompts from place `first` on, for round `step`."""
        samples = self._job.config.samples_per_prompt
        # Prompts are as many seeds apart as they have responses; runs with neighbouring seeds are far from one another.
        seed = (self._job.seed * 1_000_003 + first * samples) % 2**31
        prompts = self._prompts(first, count)
        return self._call(prompts, seed, n=samples, greedy=False, listener=self._listener(prompts, step))

    def _listener(self, prompts: Sequence[Prompt], step: int) -> ScoredAhead | None:
        if not self._workers.rewards_wait:
            return None
        [reward] = self._workers["reward"].handles
        return ScoredAhead(reward, self._job.model, self._job.trust_remote_code, prompts, step)

    def _call(
        self, prompts: Sequence[Prompt], seed: int, *, n: int, greedy: bool, listener: ScoredAhead | None = None
    ) -> list[Call]:
        rollout = self._job.config.rollout
        sampling = Sampling(
            temperature=rollout.temperature,
            max_new_tokens=rollout.max_new_tokens,
            n=n,
            greedy=greedy,
            stop_ids=tuple(self._renderer.stop_ids),
        )
        return self._workers["rollout"].call("generate", prompts, sampling, seed, listener)

    def collect(self, step: int, meanwhile: Callable[[], None] | None = None) -> Rollouts:
        """The responses of round `step`, which has been begun. Raises `RuntimeError` for weights older than `async_steps`.

        `meanwhile` is called while waiting for them, as by `wait`.
        """
        sampled = self._drawn(self._rounds[step], meanwhile)
        prompts = self._prompts(self._rounds[step].first, self._job.config.prompts_per_step)
        rollouts = collect_rollouts(prompts, sampled, self._renderer, step)
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

    def state(self) -> dict[str, Any]:
        """Which prompt comes next, and the rounds that are known to be drawn and not yet trained on, as JSON.

        They stay to be collected. A round that is still in flight is begun again, on the same prompts.
        """
        drawn = [
            {"step": step, "first": r.first, "refills": r.refills, **asdict(r.sampled)}
            for step, r in self._rounds.items()
            if r.sampled
        ]
        begun = {step: r.first for step, r in self._rounds.items() if not r.sampled}
        return {"next_prompt": self._next_prompt, "drawn": drawn, "begun": sorted({**self._begun, **begun}.items())}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on as if the rounds that `state` describes had just been drawn."""
        self._next_prompt, self._begun = state["next_prompt"], dict(state["begun"])
        for entry in state["drawn"]:
            groups = [[Generation.of(generation) for generation in group] for group in entry["groups"]]
            sampled = Sampled(groups, entry["seconds"])
            self._rounds[entry["step"]] = _Round(groups[0][0].weight_version, entry["first"], [], sampled, list(entry["refills"]))

    def _prompts(self, first: int, count: int) -> list[Prompt]:
        return [self._prompts_table[number] for number in self._order.at(first, count)]

    def _drawn(self, drawn: _Round, meanwhile: Callable[[], None] | None = None) -> Sampled:
        if drawn.sampled is None:
            [[drawn.sampled]] = wait(drawn.calls, timeout_s=self._job.config.stall_after_s, meanwhile=meanwhile)
            drawn.calls = []
        return drawn.sampled

    def _send_weights(self, version: int, *, role: str = "policy", averaged: bool = False) -> None:
        """Give the actor a policy's weights, or their average; they go from actor to actor, not through this process.

        Waited for where the actor has nothing else to do: they would have to be there before anything is drawn.
        """
        is_idle = not self.in_flight
        ranks = self._workers[role].call("weights", self._job.config.engine.precision, averaged)
        self._sending = self._workers["rollout"].call("update_weights", ranks[0].ref, version)
        self._sent_version = None if averaged or role != "policy" else version
        if is_idle:
            wait(self._sending, timeout_s=self._job.config.stall_after_s)
            self._sending = []
