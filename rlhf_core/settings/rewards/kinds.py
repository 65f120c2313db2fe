"""The kinds of reward, as the one type that settings are made of."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from pydantic import Field

from data_processing.settings import drawn_as_choice
from rlhf_core.settings.rewards.base import RewardSettings
from rlhf_core.settings.rewards.code import CodeReward
from rlhf_core.settings.rewards.functions import EnvironmentReward, ProceduresReward, PythonReward
from rlhf_core.settings.rewards.models import ClassifierReward, ProcessRewardModelReward, RewardModelReward
from rlhf_core.settings.rewards.services import HttpReward, JudgeReward
from rlhf_core.settings.rewards.verifiers import (
    ChoiceReward,
    ExactReward,
    InstructionsReward,
    JsonSchemaReward,
    LengthReward,
    MathReward,
    NumericReward,
    ReasoningGymReward,
    RegexReward,
)
from rlhf_core.settings.rewards.vr_cli import VrCliReward

RewardSource = Annotated[
    RewardModelReward
    | ProcessRewardModelReward
    | ClassifierReward
    | ProceduresReward
    | PythonReward
    | EnvironmentReward
    | CodeReward
    | HttpReward
    | JudgeReward
    | ExactReward
    | NumericReward
    | MathReward
    | ChoiceReward
    | RegexReward
    | JsonSchemaReward
    | LengthReward
    | InstructionsReward
    | ReasoningGymReward
    | VrCliReward,
    Field(discriminator="kind", json_schema_extra=drawn_as_choice),
]


def the_reward_model() -> list[RewardSource]:
    """What is taken where nothing is said: the trained scorer of the entry."""
    return [RewardModelReward()]


def inputs_of(rewards: Iterable[RewardSettings]) -> set[str]:
    """The inputs that these rewards cannot do without."""
    return {name for source in rewards for name in source.inputs}


def folders_of(rewards: Iterable[RewardSettings]) -> list[str]:
    """The folders that they read."""
    return [folder for source in rewards for folder in source.folders]


def libraries_of(rewards: Iterable[RewardSettings]) -> list[str]:
    """The distributions whose versions can change what they say."""
    return [name for source in rewards for name in source.libraries]


def modules_of(rewards: Iterable[RewardSettings]) -> list[str]:
    """The user's modules among them."""
    return [module for source in rewards for module in source.modules]
