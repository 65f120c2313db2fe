"""What the proposal does in a round: it draws, its samples are weighed, it learns, and the policy learns from them too.

Source: RePULSe, arXiv 2510.21184; repulse.md, sections 1.5 to 1.9. All weights are computed here, of whole prompts, before rows are cut
over ranks and micro-batches: no cut can come between the samples of a prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlhf_core.objectives.aggregation import denominator
from rlhf_core.objectives.twisted import (
    contrastive_advantages,
    effective_samples,
    importance_log_weights,
    negative_advantages,
    self_normalised,
    target_weights,
    twist_weights,
)
from rlhf_core.recipes.online.alarms import check_rewards
from rlhf_core.recipes.online.job import OnlineJob
from rlhf_core.recipes.online.losses import LOGPROBS
from rlhf_core.recipes.online.metrics import sampler_gap_metrics, update_metrics
from rlhf_core.recipes.online.rollouts import Rollouts, mini_batches, write_rollouts
from rlhf_core.recipes.online.sampler import Sampler
from rlhf_core.recipes.online.updates import Further, added, check_sampler, response_logprobs
from rlhf_core.recipes.online.workers import Workers
from rlhf_core.recipes.prompts import Prompt
from rlhf_core.recipes.repulse.losses import ProposalObjective
from rlhf_core.rewards.compose import Rewards
from rlhf_core.settings.repulse import RepulseSettings

# In the resume folder and the artifact: what it drew, round by round, and it itself, a checkpoint as the policy's.
PROPOSALS, PROPOSAL_MODEL = "proposals", "proposal"
# Fewer samples a prompt that count than this are as good as one.
_HARDLY_MORE_THAN_ONE = 1.1

Wait = Callable[..., list[list[Any]]]


@dataclass(frozen=True)
class Proposed:
    """Responses that the proposal has drawn, those to one prompt next to each other, and what is known of them before any update.

    `logprobs` are the policy's and `own` the proposal's, [B, T] (nats).
    """

    rollouts: Rollouts
    rewards: Rewards
    logprobs: Tensor
    own: Tensor

    @property
    def valid(self) -> Tensor:
        """The responses with a reward, [B]."""
        return torch.tensor(self.rewards.is_valid)

    @property
    def worth(self) -> Tensor:
        """What they are worth, [B], 0 without a reward."""
        return torch.tensor([value or 0.0 for value in self.rewards.worth])

    def log_weights(self, beta: float) -> Tensor:
        """log p + beta r - log q, [B]."""
        return importance_log_weights(self.worth, beta, self.logprobs, self.own, self.rollouts.mask)


class Proposal:
    """The second policy of an online run; `wait` gives the results of its calls."""

    def __init__(self, job: OnlineJob, workers: Workers, sampler: Sampler, wait: Wait, stop_if_asked: Callable[[], None]) -> None:
        self._stop_if_asked = stop_if_asked
        self._job, self._config, self._workers, self._sampler, self._wait = job, job.config, workers, sampler, wait
        self._samples = job.config.samples_per_prompt
        self._drawn: Proposed | None = None
        self._has_warned = False

    def begin(self, step: int, rollouts: Rollouts) -> None:
        """Start drawing for the prompts of round `step` (from 0), as soon as the sampler has nothing of the policy's to draw."""
        self._prompts: list[Prompt] = rollouts.prompts[:: self._samples]
        self._sampler.draw_proposals(self._prompts, step, 0)

    def draw(self, step: int) -> None:
        """Wait for what was begun, and score it. May be stopped: nothing is trained yet."""
        self._drawn = self._collect(step, 0, may_stop=True)

    def lesson(self, step: int, rollouts: Rollouts, is_valid: Sequence[bool]) -> tuple[Further, dict[str, float]]:
        """Train the proposal, and give what the policy learns from its samples beside its own, which are `rollouts`; with metrics.

        Where the policy is updated first, the proposal is trained by `catch_up`.
        """
        settings = self._config.at(step).repulse
        metrics: dict[str, float] = {}
        for number in range(settings.proposal_updates):
            if number:
                self._sampler.draw_proposals(self._prompts, step, number)
                self._drawn = self._collect(step, number, may_stop=False)
            assert self._drawn is not None, "draw comes before"
            is_last = number == settings.proposal_updates - 1
            if not is_last or settings.first == "proposal":
                metrics |= self._train(step, number, self._drawn, settings)
        assert self._drawn is not None
        return self._further(self._drawn, settings, rollouts, is_valid), metrics | self._told(self._drawn, settings)

    def catch_up(self, step: int) -> dict[str, float]:
        """Train the proposal towards the policy as it is now, where the settings say that it comes last."""
        settings, drawn = self._config.at(step).repulse, self._drawn
        if settings.first == "proposal" or drawn is None:
            return {}
        [ranks] = self._wait(self._workers["policy"].call("predict", response_logprobs(self._config), drawn.rollouts.rows))
        seen = Proposed(drawn.rollouts, drawn.rewards, added(ranks)[LOGPROBS], drawn.own)
        return self._train(step, settings.proposal_updates - 1, seen, settings)

    def _collect(self, step: int, number: int, *, may_stop: bool) -> Proposed:
        workers = self._workers
        rollouts = self._sampler.collect_proposals(self._prompts, step, self._stop_if_asked if may_stop else None)
        forward, rows = response_logprobs(self._config), rollouts.rows
        scoring = workers["reward"].call("compare", rollouts.responses)
        calls = [workers[role].call("predict", forward, rows) for role in ("policy", "proposal")]
        [rewards], policy, own = self._wait(scoring, *calls, may_stop=may_stop)
        found = Proposed(rollouts, rewards, added(policy)[LOGPROBS], added(own)[LOGPROBS])
        check_rewards(step, rewards, self._config, self._job.events)
        gap = sampler_gap_metrics(found.own, rollouts.sampler_logprobs, rollouts.mask)
        check_sampler(f"round {step + 1}, proposal", gap, self._config, self._workers.engine)
        name = f"step-{step + 1:05d}.parquet" if not number else f"step-{step + 1:05d}-{number + 1}.parquet"
        write_rollouts(self._job.resume / PROPOSALS / name, step + 1, rollouts, rewards)
        return found

    def _train(self, step: int, number: int, drawn: Proposed, settings: RepulseSettings) -> dict[str, float]:
        """One optimizer step on all its samples."""
        mask, valid = drawn.rollouts.mask, drawn.valid
        weights = self_normalised(drawn.log_weights(settings.target_beta), self._samples, valid)
        twists = twist_weights(drawn.logprobs, drawn.own, mask, self._samples, valid) * settings.second_term
        advantages = contrastive_advantages(weights, twists, mask).float()
        plan = [valid.nonzero()[:, 0].tolist()]
        first_step = step * settings.proposal_updates + number
        batches = mini_batches(plan, drawn.rollouts.rows, advantages.any(1).tolist(), first_step=first_step)
        if not batches:
            return {"proposal/grad_norm": 0.0}
        objective = ProposalObjective(self._config.rollout.temperature)
        calls = self._workers["proposal"].call("train", objective, drawn.rollouts.rows, {"advantages": advantages}, batches)
        return update_metrics(self._wait(calls)[0], "proposal/")

    def _further(self, drawn: Proposed, settings: RepulseSettings, rollouts: Rollouts, is_valid: Sequence[bool]) -> Further:
        """The negative term as rows with advantages, scaled so that both terms keep their own means in one mean over all rows."""
        beta = settings.target_beta if settings.weights_beta is None else settings.weights_beta
        weights = target_weights(
            drawn.log_weights(beta),
            drawn.worth,
            self._samples,
            drawn.valid,
            uniform=settings.weights == "uniform",
            below=settings.below,
        )
        advantages_B1 = negative_advantages(weights, settings.alpha, settings.negative_reduction)[:, None]
        mode, constant = self._config.aggregation or self._config.row.aggregation, self._config.rollout.max_new_tokens
        ours, theirs = (
            float(denominator(mask[torch.tensor(kept)], mode, constant))
            for mask, kept in ((rollouts.mask, is_valid), (drawn.rollouts.mask, drawn.rewards.is_valid))
        )
        together = ours + theirs
        return Further(
            rows=drawn.rollouts.rows,
            mask=drawn.rollouts.mask,
            advantages=(advantages_B1 * drawn.rollouts.mask * (together / max(theirs, 1.0))).float(),
            logprobs=drawn.logprobs,
            is_valid=drawn.rewards.is_valid,
            own_scale=together / max(ours, 1.0),
        )

    def _told(self, drawn: Proposed, settings: RepulseSettings) -> dict[str, float]:
        """How bad what it draws is, how many of its samples count, and how far it is from the policy."""
        log_weights = drawn.log_weights(settings.target_beta)
        weights = self_normalised(log_weights, self._samples, drawn.valid)
        effective = effective_samples(weights)
        scale = settings.alpha / (self._samples if settings.negative_reduction == "mean_k" else 1)
        worth = drawn.worth[drawn.valid].double()
        if (mean := float(effective.mean())) < _HARDLY_MORE_THAN_ONE and not self._has_warned:
            self._has_warned = True
            self._job.events.warn(
                f"repulse: of {self._samples} samples of the proposal to a prompt {mean:.2f} count on average, so one decides for each: a "
                "target_beta nearer to 0 or more samples_per_prompt make more of them count"
            )
        of_rewards = (
            {
                "proposal/reward": worth.mean(),
                "proposal/reward_min": worth.min(),
                "proposal/weighted_reward": (weights.flatten() * drawn.worth).sum() / (effective > 0).sum(),
            }
            if len(worth)
            else {}
        )
        return {
            **{name: float(value) for name, value in of_rewards.items()},
            "proposal/effective_samples": mean,
            "proposal/effective_samples_min": float(effective.min()),
            # Of single samples, so that of q from p: what the two policies differ by on what the proposal draws.
            "proposal/kl_to_policy": float(((drawn.own - drawn.logprobs) * drawn.rollouts.mask).sum(1).mean()),
            "proposal/invalid_share": drawn.rewards.invalid_share,
            "proposal/alpha_effective": scale,
        }
