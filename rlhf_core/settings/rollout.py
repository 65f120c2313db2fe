"""Settings of sampling and of what samples are worth."""

from __future__ import annotations

from enum import Enum
from typing import Literal

from pydantic import Field, model_validator

from data_processing.settings import Settings, operational


class RolloutEngine(str, Enum):
    """Who generates."""

    auto = "auto"
    vllm = "vllm"
    hf = "hf"


class RolloutSettings(Settings):
    """How responses are sampled during online training."""

    engine: RolloutEngine = Field(RolloutEngine.auto, description="auto: vLLM where it imports, else transformers")
    temperature: float = Field(1.0, gt=0.0, description="Sampling temperature; the trainer's log-probs use the same")
    max_new_tokens: int = Field(256, ge=1, description="Longest response, in tokens")
    kv_cache_mib: int = operational(256, "vLLM's key-value cache on CPU, in MiB", ge=16)
    gpu_memory_fraction: float = operational(0.4, "Share of a GPU vLLM may take", gt=0.0, lt=1.0)
    max_logprob_gap: float = Field(
        0.2, gt=0.0, description="Largest mean |sampler - trainer| log-prob (nats) before the run stops"
    )
    threads: int = operational(1, "OpenMP threads of the generation process", ge=1)
    start_timeout_s: float = operational(300.0, "Seconds the generation engine may take to start", gt=0)


class RolloutCorrection(str, Enum):
    """What makes up for responses that other weights (or another kernel) drew than those that are trained."""

    auto = "auto"
    none = "none"
    truncate = "truncate"
    mask = "mask"
    sequence_mask = "sequence_mask"


class RewardSource(Settings):
    """One source of reward."""

    kind: Literal["reward_model", "process_reward_model", "procedures", "python"] = Field(
        description="reward_model: the trained scorer; process_reward_model: one trained on judged steps; procedures: the checker; "
        "python: a function"
    )
    weight: float = Field(1.0, description="Factor in the weighted sum")
    final_weight: float | None = Field(
        None, description="Factor in the last round; it goes there from `weight` in a straight line; null: it stays"
    )
    normalise: Literal["group", "running"] | None = Field(
        None,
        description="group: less the mean, and divided by the deviation, of the prompt's responses; running: of all responses so "
        "far; null: as it is",
    )
    function: str | None = Field(
        None,
        description="Import path module:function for kind python; called with prompts, responses and labels, or as TRL calls its "
        "rewards. Returns for each response a number, a dict with a score, None where it does not apply, or NaN where it failed on "
        "that one: docs/rewards.md",
    )

    of_steps: Literal["each", "min", "mean", "last"] | None = Field(
        None,
        description="What a process_reward_model gives: each (null: that): every step earns 2 p - 1 at its last token, p being how "
        "likely it is right; min, mean, last: the answer earns that of its steps' p",
    )
    step_separator: str | None = Field(
        None, min_length=1, description="What ends a step, for a process_reward_model; null: an empty line"
    )

    @property
    def needs_reward_model(self) -> bool:
        """Whether it is the reward model of the entry that scores."""
        return self.kind in ("reward_model", "process_reward_model")

    @model_validator(mode="after")
    def _steps_iff_process(self) -> RewardSource:
        for name in ("of_steps", "step_separator"):
            if getattr(self, name) is not None and self.kind != "process_reward_model":
                raise ValueError(
                    f"rewards: {name}={getattr(self, name)!r} with kind '{self.kind}': only process_reward_model reads it; leave it out"
                )
        return self

    @model_validator(mode="after")
    def _function_iff_python(self) -> RewardSource:
        if (self.kind == "python") != (self.function is not None):
            raise ValueError(
                f"rewards: kind '{self.kind}' with function={self.function!r}: 'function' is needed for kind python and for no other"
            )
        return self
