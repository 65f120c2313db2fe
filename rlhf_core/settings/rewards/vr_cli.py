"""The reward of a plan: how much likelier it makes a known completion. Source: arXiv 2503.22828, vrcli.md."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from rlhf_core.settings.rewards.base import RewardSettings

# Inputs of an entry.
GENERATOR, BASELINE = "generator", "baseline"
RewardMode = Literal["thresholds", "binary", "positive_part", "negative_part", "raw", "positive_fraction"]


class VrCliReward(RewardSettings):
    """How much likelier the plan in a response makes the completion of its prompt, under the frozen model `generator`."""

    kind: Literal["vr_cli"] = "vr_cli"
    mode: RewardMode = Field(
        "thresholds",
        description="thresholds: by cuts_percent and levels; binary: 1 where the perplexity does not rise, else 0; positive_part, "
        "negative_part, raw: the improvement in per cent; positive_fraction: its positive part as a fraction, and no_plan_reward without a plan",
    )
    cuts_percent: list[float] = Field(
        [0.05, 1.0, 2.0], min_length=1, description="Improvements, from each of which on a level is earned"
    )
    levels: list[float] = Field([0.5, 0.9, 1.0], min_length=1, description="What each cut earns; below the first it is 0")
    markers: list[str] = Field(
        ["In summary:", "In summary,", "Detailed Plan:"],
        description="The plan is what stands behind the last of the first, then behind the last of the second in that, and so on",
    )
    require_marker: bool = Field(False, description="A response without a marker has no plan; false: all of it is one")
    empty_plan_reward: float = Field(0.0, description="What a response without a plan earns")
    no_plan_reward: float = Field(-1.0, description="The same with mode positive_fraction")
    max_plan_tokens: int | None = Field(
        None, ge=1, description="A plan is cut behind so many tokens of the generator; null: not at all"
    )
    max_noise_percent: float = Field(
        0.02,
        gt=0.0,
        description="Improvement that may be seen where a baseline is computed again, at the start; more stops the run",
    )

    @model_validator(mode="after")
    def _levels_belong_to_cuts(self) -> Self:
        if len(self.levels) != len(self.cuts_percent):
            raise ValueError(f"levels has {len(self.levels)} numbers and cuts_percent {len(self.cuts_percent)}: give one a cut")
        if any(low >= high for low, high in zip(self.cuts_percent, self.cuts_percent[1:], strict=False)):
            raise ValueError(f"cuts_percent={self.cuts_percent} do not rise: sort them, each once")
        return self

    @model_validator(mode="after")
    def _markers_say_something(self) -> Self:
        if "" in self.markers or (self.require_marker and not self.markers):
            raise ValueError(
                f"markers={self.markers} with require_marker={self.require_marker}: give texts, at least one where one is required"
            )
        return self

    @property
    def inputs(self) -> frozenset[str]:
        """The frozen model, and what an entry of stage vr_cli_baseline makes."""
        return frozenset({GENERATOR, BASELINE})

    @property
    def computes(self) -> bool:
        """Forward passes of the generator."""
        return True
