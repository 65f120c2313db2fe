"""Settings of the evaluate and compare stages."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from data_processing.settings import Settings, operational
from rlhf_core.config import RolloutEngine

Metric = Literal["procedures", "reward", "kl", "length", "perplexity"]


def _all_metrics() -> list[Metric]:
    return ["procedures", "reward", "kl", "length", "perplexity"]


class EvaluateConfig(Settings):
    """How one model is measured on the test split."""

    metrics: list[Metric] = Field(default_factory=_all_metrics, description="What is computed")
    max_prompts: int | None = Field(
        64,
        ge=1,
        description="Prompts of the test split used, and rows of its sft table; drawn by seed, from every source; null: all",
    )
    max_dropped_fraction: float = Field(
        0.05, ge=0.0, le=1.0, description="Share of the drawn rows too long for the model above which the stage stops (exit 11)"
    )
    temperature: float = Field(1.0, gt=0.0, description="Temperature of the sampled answers")
    samples_per_prompt: int = Field(1, ge=1, description="Sampled answers a prompt; their mean counts once")
    greedy: bool = Field(True, description="Also answer greedily, beside the sampled answers")
    max_new_tokens: int = Field(256, ge=1, description="Longest answer, in tokens")
    bootstrap_resamples: int = Field(2000, ge=100, description="Resamples behind each interval")
    confidence: float = Field(0.95, gt=0.5, lt=1.0, description="Level of the intervals")
    engine: RolloutEngine = Field(RolloutEngine.auto, description="auto: vLLM where it imports, else transformers")
    dtype: Literal["bf16", "fp32"] = Field("bf16", description="Precision of generation and scoring")
    micro_batch_tokens: int = Field(
        512, ge=16, description="Most tokens in one scoring pass; attention costs its square, so a CPU wants few, a GPU many"
    )
    gpus: float = operational(
        0.0,
        "Share of a GPU that is reserved for generation and scoring; 0 runs on the CPU, whatever the machine has",
        ge=0.0,
        le=1.0,
    )
    threads: int = operational(1, "OpenMP threads", ge=1)
    kv_cache_mib: int = operational(256, "vLLM's key-value cache on CPU, in MiB", ge=16)


class CompareConfig(Settings):
    """How models are set against each other, and which one becomes the challenger."""

    primary_metric: str = Field("procedures.score", description="Metric that decides")
    baseline: str = Field("sft", description="Model the others are compared with, pair by pair")
    candidates: list[str] = Field(
        default_factory=lambda: ["preference", "online"], description="Models that may become challenger"
    )
    min_prompts: int = Field(20, ge=8, description="Paired prompts below which no model is judged better or worse")
    samples_shown: int = Field(8, ge=0, le=100, description="Prompts shown side by side in the report")
    bootstrap_resamples: int = Field(2000, ge=100, description="Resamples behind each interval and each verdict")
    confidence: float = Field(0.95, gt=0.5, lt=1.0, description="Level of the intervals and of the verdicts, over all candidates")

    @model_validator(mode="after")
    def _enough_resamples(self) -> CompareConfig:
        candidates = max(len(self.candidates), 1)
        needed = math.ceil(2 * candidates / (1.0 - self.confidence) - 1e-6)
        if self.bootstrap_resamples < needed:
            raise ValueError(
                f"bootstrap_resamples={self.bootstrap_resamples} cannot tell {candidates} candidate(s) from chance at confidence "
                f"{self.confidence}: give at least {needed}"
            )
        return self
