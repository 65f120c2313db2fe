"""Online training: sample, score, compute advantages, update, send the weights to the sampler. One controller, many actors.

Read `run_online` and `_round` top to bottom for the method; the pieces live beside this file (`online_*.py`) and below.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data_processing.errors import ConfigError, DivergedError, PreemptedError
from data_processing.pace import Pace
from rlhf_core.batching.templates import Renderer
from rlhf_core.cluster.group import Call, wait
from rlhf_core.credit.base import Credit, Credited, Round
from rlhf_core.credit.build import build_credit
from rlhf_core.models.folder import check_model_folder
from rlhf_core.models.load import load_tokenizer, same_tokens
from rlhf_core.recipes.best import take_kept
from rlhf_core.recipes.online.alarms import Alarms, check_rewards, conditions
from rlhf_core.recipes.online.canary import Canary
from rlhf_core.recipes.online.checkpoints import Checkpoints, Kept
from rlhf_core.recipes.online.conversations import (
    CONVERSATIONS,
    conversation_failures,
    conversation_metrics,
    tools_of,
    write_conversations,
)
from rlhf_core.recipes.online.credit_shown import CREDIT, write_credit
from rlhf_core.recipes.online.evaluation import Evaluation, read_validation_prompts
from rlhf_core.recipes.online.job import OnlineJob
from rlhf_core.recipes.online.kl_coefficient import KlCoefficient
from rlhf_core.recipes.online.losses import ENTROPY, LOGPROBS, VALUES, ResponseEntropies, ResponseValues
from rlhf_core.recipes.online.metrics import Stopwatch, flat_groups, rollout_metrics, round_line, teacher_kl_metrics
from rlhf_core.recipes.online.reward_facts import REWARD_FACTS, write_reward_facts
from rlhf_core.recipes.online.reward_scales import RewardScales
from rlhf_core.recipes.online.rollouts import Rollouts, write_rollouts
from rlhf_core.recipes.online.sampler import Sampler
from rlhf_core.recipes.online.targets import Targets, compute_targets
from rlhf_core.recipes.online.updates import Scored, Updates, added, response_logprobs, scores_policy
from rlhf_core.recipes.online.workers import Workers, start_workers
from rlhf_core.recipes.prompts import Limits, Prompt, digest, read_prompts
from rlhf_core.recipes.repulse.bad_samples import BAD_SAMPLES, write_bad_samples
from rlhf_core.recipes.repulse.proposal import PROPOSAL_MODEL, PROPOSALS, Proposal
from rlhf_core.recipes.stop import stop_requested
from rlhf_core.rewards.base import ScoredResponse
from rlhf_core.rewards.compose import Rewards
from rlhf_core.rewards.overlong import PART, with_penalties
from rlhf_core.settings.rewards.kinds import inputs_of

_LONG_S = 5.0  # from here on it is told which part of a round took how long


def run_online(job: OnlineJob) -> None:
    """Run all rounds from the latest checkpoint on, and write the policy as a checkpoint artifact with its rollouts.

    Raises `ConfigError` and `DataError` for what cannot work, `DivergedError` for NaN, for a sampler too far from the
    trainer and for rounds that teach nothing, `PreemptedError` when asked to stop, `TransientRewardError` for a reward that
    stays away, `ActorFailedError` with the actor's traceback when one dies. Rounds done are saved first, where they can be.
    """
    check_job(job)
    tokenizer = load_tokenizer(job.model, trust_remote_code=job.trust_remote_code)
    renderer = Renderer(tokenizer)
    tools = tools_of(job.config.environment)
    prompts = read_prompts(job.data, Limits.of(job.config, job.config.rollout), job.events, renderer, tools=tools)
    validation = read_validation_prompts(job, renderer, tools)
    with start_workers(job, tokenizer.pad_token_id) as workers:
        OnlineRun(job, workers, renderer, prompts, validation).train()


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
    if config.has_critic and config.critic.warmup_steps >= config.steps:
        raise ConfigError(
            f"critic.warmup_steps={config.critic.warmup_steps} of steps={config.steps} rounds would never train the policy: lower it"
        )
    if config.has_teacher and (
        job.teacher is None or not same_tokens(job.model, job.teacher, trust_remote_code=job.trust_remote_code)
    ):
        raise ConfigError(
            f"method '{config.method}': the teacher {job.teacher} has another vocabulary than the policy {job.model}: take one with the "
            "same tokenizer"
            if job.teacher
            else f"method '{config.method}' needs a teacher, and this run has none: name one as the input 'teacher'"
        )
    if missing := sorted(inputs_of(config.rewards) - job.scorers.keys()):
        raise ConfigError(
            f"rewards: the reward model '{missing[0]}' is asked, and this run has {sorted(job.scorers) or 'none'}: name an entry that "
            "makes one as that input, or use another kind"
        )


@dataclass
class OnlineRun:
    """One online run: what it is made of, and how far it is."""

    job: OnlineJob
    workers: Workers
    renderer: Renderer
    prompts: list[Prompt]
    validation: list[Prompt]
    cpu_seconds: dict[str, float] = field(default_factory=dict)
    alarms: Alarms = field(init=False)
    kl: KlCoefficient = field(init=False)
    scales: RewardScales = field(init=False)
    sampler: Sampler = field(init=False)
    updates: Updates = field(init=False)
    evaluation: Evaluation = field(init=False)
    canary: Canary = field(init=False)
    credit: Credit | None = field(init=False)
    proposal: Proposal | None = field(init=False)
    checkpoints: Checkpoints = field(init=False)

    def __post_init__(self) -> None:
        self.alarms = Alarms(self.job.events, self.job.config.gates)
        self.sampler = Sampler(self.job, self.workers, self.renderer, self.prompts)
        self.kl = KlCoefficient(self.job.config)
        self.scales = RewardScales(lambda statistics: self._wait(self.workers["reward"].call("restore", statistics)))
        self.updates = Updates(self.job, self.workers, self._wait)
        self.evaluation = Evaluation(self.job, self.workers, self.sampler, self.renderer, self.validation, self._wait)
        self.credit = build_credit(self.job.config)
        self.proposal = None
        if self.job.config.has_proposal:
            self.proposal = Proposal(self.job, self.workers, self.sampler, self._wait, self._stop_if_asked)
        self.canary = Canary(self.job, self.workers, self.renderer, self._wait)
        parts: dict[str, Kept] = {
            "alarms": self.alarms,
            "kl": self.kl,
            "scales": self.scales,
            "evaluation": self.evaluation,
            "canary": self.canary,
        }
        self.checkpoints = Checkpoints(self.job, self.workers.trained, self.sampler, digest(self.prompts), parts)

    def train(self) -> None:
        """All rounds that are left, then the artifact."""
        job, total = self.job, self.job.config.steps
        done = self.checkpoints.resume()
        for note in self.workers.notes:
            job.events.warn_once(note)
        job.events.metrics(0, self.workers.metrics)
        job.events.progress(done, total, f"sampling with {self.workers.engine} from {len(self.prompts)} prompts")
        pace = Pace(done)
        self._usage()  # so that the first round has its own only
        with self.checkpoints.kept():
            for step in range(done, total):
                if self.evaluation.is_over:
                    job.events.progress(step, total, f"ended after round {step}: {self.evaluation.best.why_over}")
                    break
                self._stop_if_asked()
                metrics = self._round(step)
                job.events.metrics(step + 1, metrics)
                job.events.progress(
                    step + 1, total, f"round {step + 1}/{total}: {round_line(metrics)}{pace.left(step + 1, total)}"
                )
                self.checkpoints.round_is_done()
            else:
                self.evaluation.begin(total)
                self.evaluation.finish()
            self._finish()

    def _round(self, step: int) -> dict[str, float]:
        """Round `step` (from 0): returns its metrics."""
        clock, config = Stopwatch(), self.job.config.at(step)
        rollouts = self._sample(step, clock)
        self._say(step, f"scoring {len(rollouts.rows)} responses", clock)
        known = self.canary.look(step)
        rollouts, rewards = self._without_flat_groups(step, rollouts, clock)
        self.evaluation.begin(step)
        if self.proposal is not None:
            self.proposal.begin(step, rollouts)
        scored = self._score(step, rollouts, rewards, clock)
        credited = self._credit(step, rollouts, scored, clock)
        if self.proposal is not None:
            self._say(step, "waiting for the proposal's responses", clock)
            self.proposal.draw(step)
            clock.lap("propose")
        self._say(step, "training on them", clock)
        targets = compute_targets(
            config,
            credited.total,
            mask=rollouts.mask,
            kl_coef=self.kl.value,
            logprobs=scored.logprobs,
            reference=scored.reference,
            values=scored.values,
            teacher=scored.teacher,
            token_rewards=rollouts.at_learnt_tokens(credited.tokens) if any(own is not None for own in credited.tokens) else None,
            turn_ends=rollouts.turn_ends,
        )
        metrics = known | rollout_metrics(rollouts, scored.rewards, config.samples_per_prompt, step)
        metrics |= conversation_metrics(rollouts) | {f"credit/{name}": value for name, value in credited.metrics.items()}
        if scored.teacher is not None and scored.logprobs is not None:
            metrics |= teacher_kl_metrics(scored.logprobs, scored.teacher, rollouts.mask)
        metrics |= self._update(step, rollouts, scored, targets)
        self.evaluation.finish()
        metrics |= self.kl.follow(metrics)
        self.scales.after(scored.rewards.running)
        clock.lap("update")
        metrics["length_growth"] = self.alarms.growth(metrics)
        metrics |= self._usage()
        self.alarms.check(step, conditions(config, metrics))
        return metrics | clock.seconds()

    def _usage(self) -> dict[str, float]:
        """What each role has taken, all its processes together; a sampler that is at work is not asked.

        The most memory so far, MiB, and the processor time since it was last asked, seconds.
        """
        asked = {role: group for role, group in self.workers.groups.items() if role != "rollout" or not self.sampler.in_flight}
        found = dict(zip(asked, self._wait(*(group.call("usage") for group in asked.values())), strict=True))
        before, now = self.cpu_seconds, {role: sum(rank.cpu_seconds for rank in ranks) for role, ranks in found.items()}
        self.cpu_seconds = before | now
        taken = {role: seconds - before.get(role, 0.0) for role, seconds in now.items()}
        return {
            **{f"memory_mib/{role}": sum(rank.memory_mib for rank in ranks) for role, ranks in found.items()},
            **{f"cpu_seconds/{role}": seconds for role, seconds in taken.items()},
            "cpu_seconds": sum(taken.values()),
        }

    def _say(self, step: int, what: str, clock: Stopwatch) -> None:
        """What a round of many seconds is at now."""
        laps = {name: seconds for name, seconds in clock.laps.items() if seconds >= _LONG_S}
        if laps:
            told = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in laps.items())
            self.job.events.progress(step, self.job.config.steps, f"round {step + 1}/{self.job.config.steps}: {what} ({told})")

    def _sample(self, step: int, clock: Stopwatch) -> Rollouts:
        """The round's responses. With `async_steps` as many next rounds are begun, with the weights that this round starts from."""
        config = self.job.config
        self.sampler.begin(step, version=step)
        clock.lap("sync")
        rollouts = self.sampler.collect(step, self._stop_if_asked)
        clock.lap("wait")
        for ahead in range(step + 1, min(step + config.async_steps + 1, config.steps)):
            self.sampler.begin(ahead, version=step)
        clock.lap("sync")
        return rollouts

    def _without_flat_groups(self, step: int, rollouts: Rollouts, clock: Stopwatch) -> tuple[Rollouts, Rewards | None]:
        """The round with other prompts for groups of equal rewards, which teach a group method nothing, and its rewards.

        As often as `max_refills` says (DAPO, arXiv 2503.14476, section 3.2); without it the same round, and no rewards yet.
        """
        config, refills = self.job.config, self.job.config.value("max_refills")
        if not refills:
            return rollouts, None
        rewards = self._rewards_of(step, rollouts)
        for _ in range(refills):
            if not (flat := flat_groups(rewards.worth, config.samples_per_prompt)):
                break
            self._say(step, f"drawing again for {len(flat)} prompts whose answers are all worth the same", clock)
            others = self.sampler.draw_again(step, len(flat), self._stop_if_asked)
            numbers = [group * config.samples_per_prompt + i for group in flat for i in range(config.samples_per_prompt)]
            rollouts, rewards = rollouts.with_rows(numbers, others), rewards.with_rows(numbers, self._rewards_of(step, others))
        clock.lap("refill")
        return rollouts, rewards

    def _rewards_of(self, step: int, rollouts: Rollouts) -> Rewards:
        with self._kept_apart(step, rollouts):
            [[rewards]] = self._wait(self.workers["reward"].call("score", rollouts.responses), may_stop=True)
        found: Rewards = rewards
        return found.without(rollouts.failed)

    @contextmanager
    def _kept_apart(self, step: int, rollouts: Rollouts) -> Iterator[None]:
        """Responses whose scoring breaks the run are there to be looked at."""
        try:
            yield
        except DivergedError:
            nothing = Rewards([None] * len(rollouts.rows), {})
            write_rollouts(self.job.resume / "bad_rollouts.parquet", step + 1, rollouts, nothing)
            raise

    def _score(self, step: int, rollouts: Rollouts, rewards: Rewards | None, clock: Stopwatch) -> Scored:
        """Rewards, where they are not known yet, and what else the method needs to know before the update, computed side by side."""
        workers, rows, config = self.workers, rollouts.rows, self.job.config
        scoring = [] if rewards is not None else workers["reward"].call("score", rollouts.responses)
        calls = {}
        if scores_policy(config, step):
            calls["policy"] = workers["policy"].call("predict", response_logprobs(config), rows)
        if "reference" in workers:
            calls["reference"] = workers["reference"].call("predict", response_logprobs(config), rows)
        elif config.uses_kl:
            calls["reference"] = workers["policy"].call("predict_reference", response_logprobs(config), rows)
        if "teacher" in workers:
            calls["teacher"] = workers["teacher"].call("predict", response_logprobs(config), rows)
        if "critic" in workers:
            calls["critic"] = workers["critic"].call("predict", ResponseValues(), rows)
        with self._kept_apart(step, rollouts):
            results = dict(zip(calls, self._wait(*calls.values(), may_stop=True, beside=scoring), strict=True))
            clock.lap("score")
            # What is waited for here nothing else hides.
            [found] = self._wait(scoring, may_stop=True)
            clock.lap("rewards")
        rewards = rewards if rewards is not None else found[0].without(rollouts.failed)
        rewards = with_penalties(rewards, [sum(g.is_learnt) for g in rollouts.generations], config)
        write_rollouts(self._rollouts_path(step), step + 1, rollouts, rewards)
        check_rewards(step, rewards, config, self.job.events, conversation_failures(rollouts))
        values = {role: added(ranks) for role, ranks in results.items()}
        return Scored(
            rewards,
            values.get("policy", {}).get(LOGPROBS),
            values.get("reference", {}).get(LOGPROBS),
            values.get("critic", {}).get(VALUES),
            values.get("teacher", {}).get(LOGPROBS),
        )

    def _credit(self, step: int, rollouts: Rollouts, scored: Scored, clock: Stopwatch) -> Credited:
        """Where the rewards of the round go: as they are, or as the run's credit spreads them."""
        rewards, credit = scored.rewards, self.credit
        if credit is None:
            return Credited(rewards.total, rewards.tokens)
        self._say(step, "spreading their rewards over tokens", clock)
        entropy = None
        if getattr(credit, "needs_entropy", False):
            [ranks] = self._wait(self.workers["policy"].call("predict", ResponseEntropies(), rollouts.rows), may_stop=True)
            entropy = added(ranks)[ENTROPY]
        eos_ids = self.renderer.stop_ids
        last_ids = [generation.response_ids[-1] for generation in rollouts.generations]
        ends = [last if last in eos_ids else None for last in last_ids]
        # What long answers pay is theirs as a whole: no counterfactual is scored with it.
        outcome = rewards.without_part(PART)
        given = Round(rollouts.responses, outcome, ends, eos_ids, self.renderer.tokenizer, entropy, self._worth_of)
        credited = credit(given)
        if PART in rewards.by_source:
            paid = zip(credited.total, rewards.by_source[PART], strict=True)
            credited = replace(credited, total=[None if own is None else own + (value or 0.0) for own, value in paid])
        write_rollouts(self._rollouts_path(step), step + 1, rollouts, rewards, credited.units)
        clock.lap("credit")
        return credited

    def _worth_of(self, responses: Sequence[ScoredResponse]) -> list[float | None]:
        """What other responses than the round's are worth, on the round's scale."""
        [[rewards]] = self._wait(self.workers["reward"].call("compare", responses), may_stop=True)
        found: Rewards = rewards
        return found.total

    def _update(self, step: int, rollouts: Rollouts, scored: Scored, targets: Targets) -> dict[str, float]:
        """Train on the round's rollouts, and keep them apart where that breaks the run."""
        self.checkpoints.round_begins_to_train()
        try:
            if self.proposal is None:
                return self.updates.run(step, rollouts, scored, targets)
            further, metrics = self.proposal.lesson(step, rollouts, scored.rewards.is_valid)
            metrics |= self.updates.run(step, rollouts, scored, targets, further)
            return metrics | self.proposal.catch_up(step)
        except DivergedError:
            shutil.copy2(self._rollouts_path(step), self.job.resume / "bad_rollouts.parquet")
            raise

    def _finish(self) -> None:
        best = self.evaluation.weights
        if best is None:
            self._wait(self.workers["policy"].call("save_final", self.job.output))
        else:
            take_kept(best, self.job.output)
        shutil.copytree(self.job.resume / "rollouts", self.job.output / "rollouts", dirs_exist_ok=True)
        self._keep_proposal()
        write_reward_facts(self.job.output / "rollouts", self.job.output / REWARD_FACTS)
        if self.job.config.environment.is_given:
            write_conversations(self.job.output / "rollouts", self.prompts, self.job.output / CONVERSATIONS)
        write_credit(self.job.output / "rollouts", self.prompts, self.renderer.tokenizer, self.job.output / CREDIT)

    def _keep_proposal(self) -> None:
        """Beside the policy what the second one drew, and the second one itself."""
        job = self.job
        if self.proposal is not None:
            shutil.copytree(job.resume / PROPOSALS, job.output / PROPOSALS, dirs_exist_ok=True)
            self._wait(self.workers["proposal"].call("save_final", job.output / PROPOSAL_MODEL))
        if (limit := job.config.keep_below) is not None:
            folders = [job.output / "rollouts", job.output / PROPOSALS]
            write_bad_samples(folders, limit, self.renderer.tokenizer, job.output / BAD_SAMPLES)

    def _wait(self, *calls: Sequence[Call], may_stop: bool = False, beside: Sequence[Call] = ()) -> list[list[Any]]:
        return wait(
            *calls,
            timeout_s=self.job.config.stall_after_s,
            beside=[*self.sampler.in_flight, *beside],
            meanwhile=self._stop_if_asked if may_stop else None,
        )

    def _stop_if_asked(self) -> None:
        """Not called amid a round's update, which is quicker done than done again."""
        if stop_requested(self.job.resume):
            done = self.checkpoints.done
            kept = "a checkpoint is saved to go on from" if done else "there is nothing to keep yet"
            raise PreemptedError(f"asked to stop after {done} of {self.job.config.steps} rounds; {kept}")

    def _rollouts_path(self, step: int) -> Path:
        return self.job.resume / "rollouts" / f"step-{step + 1:05d}.parquet"
