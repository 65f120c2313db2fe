"""Rewards that a trained model gives."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from data_processing.settings import local_path
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

    @property
    def of_tokens(self) -> bool:
        """With a reward for each step."""
        return self.of_steps == "each"


class ClassifierReward(RewardSettings):
    """A sequence classifier in a folder, of any family and with its own tokenizer: another team's reward model, a toxicity head."""

    kind: Literal["classifier"] = "classifier"
    path: str = Field(description="Folder in Hugging Face layout", json_schema_extra={"path": True})
    reads: Literal["chat", "pair", "response"] = Field(
        "chat",
        description="chat: the conversation, under the classifier's own chat template; pair: prompt and response as two texts; response: "
        "the response alone",
    )
    label: str | int | None = Field(None, description="Name or number of the output that counts; null where there is only one")
    trust_remote_code: bool = Field(False, description="Run Python code that comes with the folder")
    output: Literal["logit", "probability"] = Field(
        "logit", description="probability: the sigmoid of a single output, the softmax of several"
    )

    @field_validator("path")
    @classmethod
    def _path_is_absolute(cls, value: str) -> str:
        return local_path(value)

    @property
    def folders(self) -> tuple[str, ...]:
        """The classifier's."""
        return (self.path,)

    @property
    def computes(self) -> bool:
        """A forward pass."""
        return True
