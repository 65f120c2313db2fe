"""Settings of the evaluate and compare stages."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, field_validator

from data_processing.errors import ConfigError
from data_processing.settings import Settings, operational
from rlhf_core.precision import Dtype, Native, native_dtype
from rlhf_core.settings.credit import DrcaCredit
from rlhf_core.settings.rewards.base import RewardSettings
from rlhf_core.settings.rewards.vr_cli import VrCliReward
from rlhf_core.settings.rollout import RolloutEngine
from rlhf_core.settings.training import ChosenDtype

Metric = Literal["procedures", "reward", "kl", "length", "perplexity", "localisation", "improvement"]


def _all_metrics() -> list[Metric]:
    return ["procedures", "reward", "kl", "length", "perplexity"]


class EvaluateConfig(Settings):
    """How one model is measured on the test split."""

    metrics: list[Metric] = Field(
        default_factory=_all_metrics,
        description="What is computed; not unless named: localisation, whether difference rewards find the faulty step of spoiled procedures; "
        "improvement, how much likelier answers, taken as plans, make known completions (VR-CLI)",
    )
    max_prompts: int | None = Field(
        64,
        ge=1,
        description="Prompts of the test split used, and rows of its sft table; drawn by seed, from every source; null: all",
    )
    max_dropped_fraction: float = Field(
        0.05,
        ge=0.0,
        le=1.0,
        description="Share of the drawn rows too long for the model, or refused by its template, above which the stage stops (exit 11)",
    )
    bad_below: float | None = Field(
        None, description="Answers whose reward is less are bad: the share of them is told as reward.bad; null: not told"
    )
    temperature: float = Field(1.0, gt=0.0, description="Temperature of the sampled answers")
    samples_per_prompt: int = Field(1, ge=1, description="Sampled answers a prompt; their mean counts once")
    greedy: bool = Field(True, description="Also answer greedily, beside the sampled answers")
    max_new_tokens: int = Field(256, ge=1, description="Longest answer, in tokens")
    bootstrap_resamples: int = Field(2000, ge=100, description="Resamples behind each interval")
    confidence: float = Field(0.95, gt=0.5, lt=1.0, description="Level of the intervals")
    localisation: DrcaCredit = Field(
        default_factory=DrcaCredit, description="How the metric localisation cuts units and takes them away; by labels only"
    )
    vr_cli: VrCliReward = Field(default_factory=VrCliReward, description="How the metric improvement reads and rates plans")
    engine: RolloutEngine = Field(RolloutEngine.auto, description="auto: vLLM where it imports, else transformers")
    dtype: ChosenDtype = Field(
        "auto", description="Precision of generation and scoring; auto: bf16 where the device computes it natively, else fp32"
    )
    micro_batch_tokens: int = Field(
        512, ge=16, description="Most tokens in one scoring pass; attention costs its square, so a CPU wants few, a GPU many"
    )
    reward_model: str | None = operational(
        None, "Entry that scores answers for the metric 'reward'; null: the only one that makes a scorer"
    )
    baseline: str | None = operational(None, "Entry of stage vr_cli_baseline for the metric 'improvement'; null: the only one")
    gpus: float = operational(
        0.0,
        "Share of a GPU that is reserved for generation and scoring; 0 runs on the CPU, whatever the machine has",
        ge=0.0,
        le=1.0,
    )
    threads: int = operational(1, "OpenMP threads", ge=1)
    kv_cache_mib: int = operational(256, "vLLM's key-value cache on CPU, in MiB", ge=16)

    @field_validator("vr_cli")
    @classmethod
    def _nothing_is_summed(cls, value: VrCliReward) -> VrCliReward:
        """A weight and what else is of a sum of rewards would change nothing here."""
        for name, field in RewardSettings.model_fields.items():
            if name != "kind" and (given := getattr(value, name)) != field.default:
                raise ValueError(f"{name}={given!r}: that is of a reward that others are added to; take it out")
        return value

    @field_validator("localisation")
    @classmethod
    def _units_have_labels(cls, value: DrcaCredit) -> DrcaCredit:
        if value.unit_extraction != "regex":
            raise ValueError(
                f"unit_extraction='{value.unit_extraction}': spoiled procedures are not drawn, so only labels tell units; use regex"
            )
        return value

    @property
    def precision(self) -> Dtype:
        """The dtype that is computed in: what `auto` means for this device."""
        return self.precision_by(native_dtype)

    def precision_by(self, native: Native) -> Dtype:
        """The same for a device of a machine that computes `native`."""
        return native(self.gpus > 0) if self.dtype == "auto" else self.dtype


# What decides where nothing is named, the first that is measured.
PRIMARY_METRICS = ("procedures.score", "reward", "improvement", "perplexity")


class CompareConfig(Settings):
    """How models are set against each other, and which one becomes the challenger."""

    primary_metric: str | None = Field(
        None, description=f"Metric that decides; null: the first of {', '.join(PRIMARY_METRICS)} that is measured"
    )
    baseline: str | None = Field(
        None,
        description="Entry whose model the others are compared with, pair by pair; null: the first that is trained, or the base",
    )
    candidates: list[str] | None = Field(
        None, description="Entries whose models may become challenger; null: all but baseline and base"
    )
    models: list[str] = Field(default_factory=list, description="Order of the models in the report; filled in from the pipeline")
    seeds: dict[str, list[str]] = Field(
        default_factory=dict,
        description="Models that differ in their seed only, by the name they share; filled in from the pipeline",
    )
    min_prompts: int = Field(20, ge=8, description="Paired prompts below which no model is judged better or worse")
    samples_shown: int = Field(8, ge=0, le=100, description="Prompts shown side by side in the report")
    bootstrap_resamples: int = Field(
        2000, ge=100, description="Resamples behind each interval and each verdict; more are drawn where candidates are many"
    )
    confidence: float = Field(0.95, gt=0.5, lt=1.0, description="Level of the intervals and of the verdicts, over all candidates")

    @property
    def named_baseline(self) -> str:
        """The baseline; raises `ConfigError` where nobody has named one."""
        if self.baseline is None:
            raise ConfigError("compare.baseline: name the model that the others are compared with; a pipeline fills it in")
        return self.baseline

    @property
    def named_candidates(self) -> list[str]:
        """The candidates; none where nobody has named any."""
        return self.candidates or []

    @property
    def resamples(self) -> int:
        """As many as were asked for, or as it takes to tell the best of all candidates from chance at all."""
        needed = math.ceil(2 * max(len(self.named_candidates), 1) / (1.0 - self.confidence) - 1e-6)
        return max(self.bootstrap_resamples, needed)
