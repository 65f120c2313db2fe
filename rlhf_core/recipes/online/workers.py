"""The actors of an online run: who they are, what room they need, and how they are started and ended together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from rlhf_core.cluster.actors import CriticWorker, ModelSetup, PolicyWorker, ScoringWorker
from rlhf_core.cluster.group import ActorSpec, Group, wait
from rlhf_core.cluster.placement import reserved
from rlhf_core.cluster.reward_actor import RewardSetup, RewardWorker
from rlhf_core.cluster.rollout_actor import RolloutSetup, RolloutWorker
from rlhf_core.recipes.online import roles
from rlhf_core.recipes.online.job import OnlineJob
from rlhf_core.recipes.start import REHEARSAL_NAME
from rlhf_core.recipes.stop import stop_if_requested_while
from rlhf_core.rewards.build import Around
from rlhf_core.rewards.compose import Retries
from rlhf_core.settings.online import OnlineConfig

# The roles whose weights change.
TRAINED = ("policy", "critic", "proposal")


@dataclass(frozen=True)
class Workers:
    """The running actors by role: policy, reward and rollout, those of the method's, and a reference.

    That is there only where a KL to it is paid for and the policy's own weights change: below adapters it is the policy's base.

    `engine` says who generates, and why; `notes` are what all of them tell people, `metrics` the same in numbers. Where
    `rewards_wait`, the reward worker should hear of responses as soon as they end.
    """

    groups: dict[str, Group]
    engine: str
    notes: list[str]
    metrics: dict[str, float]
    rewards_wait: bool

    def __getitem__(self, role: str) -> Group:
        return self.groups[role]

    def __contains__(self, role: str) -> bool:
        return role in self.groups

    @property
    def trained(self) -> dict[str, Group]:
        """The actors whose weights change, by role."""
        return {role: self.groups[role] for role in TRAINED if role in self.groups}


@contextmanager
def start_workers(job: OnlineJob, pad_id: int) -> Iterator[Workers]:
    """All actors in one placement group, set up side by side; ended when the block is left, however it is left.

    Raises what `reserve` does while there is no room for all of them, and the error of the first that fails to start.
    """
    with reserved(roles.resources(job.config), job.waiting) as placement:
        groups: dict[str, Group] = {}
        try:
            groups |= {spec.role: Group(spec, placement) for spec in _specs(job.config)}
            yield _set_up(job, groups, pad_id)
        finally:
            for group in groups.values():
                group.kill()


_CLASSES: dict[str, type] = {
    "policy": PolicyWorker,
    "reward": RewardWorker,
    "rollout": RolloutWorker,
    "reference": ScoringWorker,
    "critic": CriticWorker,
    "proposal": PolicyWorker,
    "teacher": ScoringWorker,
}


def _specs(config: OnlineConfig) -> Iterator[ActorSpec]:
    first_bundle = 0
    for role, count in roles.processes(config).items():
        threads = config.rollout.threads if role == "rollout" else config.engine.threads_per_rank
        yield ActorSpec(role, _CLASSES[role], [roles.bundle_of(role, config)] * count, first_bundle, threads)
        first_bundle += count


def _set_up(job: OnlineJob, groups: dict[str, Group], pad_id: int) -> Workers:
    config = job.config
    stop_if_asked = partial(stop_if_requested_while, job.resume, "the actors were starting")
    wait_for = partial(wait, timeout_s=config.rollout.start_timeout_s, meanwhile=stop_if_asked)
    trained = [groups[role] for role in TRAINED if role in groups]
    addresses = wait_for(*[group.call("address") for group in trained])
    wait_for(*[group.join(address) for group, [address, *_] in zip(trained, addresses, strict=True)])
    setups = _setups(job, pad_id)
    calls = {role: group.call("setup", setups[role]()) for role, group in groups.items()}
    told = dict(zip(calls, wait_for(*calls.values()), strict=True))
    [sampler] = told.pop("rollout")
    [_, [layouts, *_], [rewards_wait]] = wait_for(
        groups["policy"].call("rehearse", job.resume / REHEARSAL_NAME),
        groups["policy"].call("layouts"),
        groups["reward"].call("waits"),
    )
    notes = [*sampler.notes, *(note for ranks in told.values() for lines in ranks for note in lines)]
    return Workers(groups, sampler.engine, notes, {**layouts, **sampler.metrics}, rewards_wait)


def _setups(job: OnlineJob, pad_id: int) -> dict[str, Callable[[], Any]]:
    """What each role is started with."""
    return {
        "policy": partial(_model_setup, job, pad_id),
        "reference": partial(_model_setup, job, pad_id),
        "critic": partial(_critic_setup, job, pad_id),
        "proposal": partial(_proposal_setup, job, pad_id),
        "teacher": partial(_teacher_setup, job, pad_id),
        "rollout": partial(_rollout_setup, job),
        "reward": partial(_reward_setup, job),
    }


def _reward_setup(job: OnlineJob) -> RewardSetup:
    config = job.config
    around = Around.of_stage(
        job.model,
        config.engine,
        job.scorers,
        stall_after_s=config.stall_after_s,
        resume=job.resume,
        allowed_hosts=job.allowed_hosts,
        retries=Retries(config.reward_retries, config.reward_retry_wait_s),
        trust_remote_code=job.trust_remote_code,
        credit=config.credit,
    )
    return RewardSetup(config.rewards, around, config.steps)


def _model_setup(job: OnlineJob, pad_id: int) -> ModelSetup:
    config = job.config
    updates = config.updates_per_step * config.mini_batches
    policy_rounds = config.steps - (config.critic.warmup_steps if config.has_critic else 0)
    return ModelSetup(
        model=job.model,
        engine=config.engine,
        lora=config.lora,
        optimizer=config.optimizer,
        total_steps=policy_rounds * updates,
        pad_id=pad_id,
        seed=job.seed,
        new_head=False,
        trust_remote_code=job.trust_remote_code,
        ema_decay=config.ema_decay,
    )


def _proposal_setup(job: OnlineJob, pad_id: int) -> ModelSetup:
    """It starts where the policy does, and is no average of anything."""
    settings, own = job.config.repulse, _model_setup(job, pad_id)
    return replace(
        own,
        optimizer=own.optimizer.model_copy(update={"learning_rate": settings.proposal_learning_rate}),
        total_steps=job.config.steps * settings.proposal_updates,
        ema_decay=None,
    )


def _teacher_setup(job: OnlineJob, pad_id: int) -> ModelSetup:
    assert job.teacher is not None, "check_job has seen it"
    return replace(_model_setup(job, pad_id), model=job.teacher)


def _critic_setup(job: OnlineJob, pad_id: int) -> ModelSetup:
    """The critic starts from the reward model where there is one, else from the policy with a new head."""
    config = job.config
    return ModelSetup(
        model=job.reward_model or job.model,
        engine=config.engine,
        lora=config.lora,
        optimizer=config.optimizer.model_copy(update={"learning_rate": config.critic.learning_rate}),
        total_steps=config.steps * config.updates_per_step * config.mini_batches,
        pad_id=pad_id,
        seed=job.seed,
        new_head=job.reward_model is None,
        trust_remote_code=job.trust_remote_code,
    )


def _rollout_setup(job: OnlineJob) -> RolloutSetup:
    config, rollout = job.config, job.config.rollout
    return RolloutSetup(
        engine=rollout.engine,
        model=job.model,
        dtype=config.engine.precision,
        max_model_len=config.max_length_tokens,
        max_num_seqs=min(config.prompts_per_step * config.samples_per_prompt, 256),
        kv_cache_mib=rollout.kv_cache_mib,
        gpu_memory_fraction=rollout.gpu_memory_fraction,
        threads=rollout.threads,
        trust_remote_code=job.trust_remote_code,
        gpus=config.engine.gpus_per_rank,
        environment=config.environment,
    )
