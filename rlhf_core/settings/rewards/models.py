"""Rewards that a trained model gives."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rlhf_core.settings.rewards.base import RewardSettings


class _ModelReward(RewardSettings):
    input: str = Field("reward_model", description="The input of the entry that is the model; further ones may have any name")

    @property
    def inputs(self) -> frozenset[str]:
        """The model."""
        return frozenset({self.input})

    @property
    def computes(self) -> bool:
        """A forward pass."""
        return True


class RewardModelReward(_ModelReward):
    """The scorer that the reward_model stage trained."""

    kind: Literal["reward_model"] = "reward_model"


class ProcessRewardModelReward(_ModelReward):
    """A scorer trained with `granularity: step`: what each step of a response is worth."""

    kind: Literal["process_reward_model"] = "process_reward_model"
    of_steps: Literal["each", "min", "mean", "last"] = Field(
        "each",
        description="each: every step earns 2 p - 1 at its last token, p being how likely it is right; min, mean, last: the response "
        "earns that of its steps' p",
    )
    step_separator: str = Field("\n\n", min_length=1, description="What ends a step")
