"""Settings of the stages that make tables from a model's own answers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from data_processing.settings import Settings, operational
from rlhf_core.settings.preference import PreferenceConfig
from rlhf_core.settings.rewards.kinds import RewardSource, the_reward_model
from rlhf_core.settings.rollout import RolloutSettings
from rlhf_core.settings.training import EngineSettings

SampledTable = Literal["sft", "preference", "unpaired", "prompts"]


class SampleSettings(Settings):
    """How answers are drawn, judged and chosen."""

    samples_per_prompt: int = Field(4, ge=1, description="Answers a prompt; pairs need at least 2")
    max_prompts: int | None = Field(
        256, ge=1, description="Training prompts that are answered, drawn by seed and model; null: all"
    )
    max_validation_prompts: int = Field(16, ge=0, description="Validation prompts that are answered; 0: none")
    rewards: list[RewardSource] = Field(
        default_factory=the_reward_model,
        min_length=1,
        description="What answers are worth: weighted sum",
    )
    min_reward: float | None = Field(
        None, description="An answer worth less is no good one (sft: left out; unpaired: undesirable); null: sft takes any"
    )
    min_margin: float = Field(0.0, ge=0.0, description="A pair's answers differ by more than this in what they are worth")
    rollout: RolloutSettings = Field(default_factory=RolloutSettings, description="Sampling")

    @field_validator("rewards")
    @classmethod
    def _answers_are_one_turn(cls, value: list[RewardSource]) -> list[RewardSource]:
        if any(source.kind == "environment" for source in value):
            raise ValueError("kind 'environment' is for online training: answers are drawn in one turn here; use other rewards")
        return value


class SampleConfig(SampleSettings):
    """Answers of a model to the prompts, judged, as a table that others learn from: rejection sampling, on-policy pairs."""

    table: SampledTable = Field(
        "sft",
        description="sft: the best answer to each prompt; preference: the best and the worst; unpaired: each, by min_reward; prompts: the prompts themselves, with the share of their answers worth "
        "min_reward as pass_rate",
    )
    engine: EngineSettings = Field(default_factory=EngineSettings, description="Precision and GPUs of sampling and judging")
    max_length_tokens: int = Field(1024, ge=8, description="Longest prompt and answer together")
    overlong: Literal["error", "drop"] = Field("error", description="What happens to prompts that leave no room for an answer")
    max_dropped_fraction: float = Field(
        0.05, ge=0.0, le=1.0, description="Share of the prompts that may be left out, above which the stage stops (exit 11)"
    )
    stall_after_s: float = operational(1800.0, "Seconds without an event after which the stage counts as hung", gt=0)

    @model_validator(mode="after")
    def _the_table_can_be_made(self) -> SampleConfig:
        check_table(self, self.table)
        return self


class IterativeConfig(PreferenceConfig):
    """On-policy preference optimisation: the model's own answers are drawn, judged and learnt from. With `rounds` again and again."""

    sample: SampleSettings = Field(default_factory=SampleSettings, description="How answers are drawn, judged and chosen")

    @property
    def table(self) -> SampledTable:
        """What the method learns from."""
        return "preference" if self.row.learns_from == "pairs" else "unpaired"

    @model_validator(mode="after")
    def _the_table_can_be_made(self) -> IterativeConfig:
        check_table(self.sample, self.table)
        return self


def check_table(settings: SampleSettings, table: SampledTable) -> None:
    """Raise `ValueError` for settings that a table cannot be made with."""
    if table == "preference" and settings.samples_per_prompt < 2:
        raise ValueError(
            f"samples_per_prompt={settings.samples_per_prompt} for pairs: the best and the worst of a prompt's answers are taken, so at least 2"
        )
    if table in ("unpaired", "prompts") and settings.min_reward is None:
        raise ValueError(f"min_reward=null for the table '{table}': say from which reward on an answer is a good one")
