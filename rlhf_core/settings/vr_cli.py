"""Settings of the stage vr_cli_baseline, which a reward of kind vr_cli reads too: how a frozen model is asked for a completion."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from data_processing.settings import Settings, operational
from rlhf_core.precision import Dtype, Native, native_dtype
from rlhf_core.settings.training import ChosenDtype

ScoreSpan = Literal["content+eot", "content", "all"]
PLAN_PLACE = "{plan}"


class VrCliBaselineConfig(Settings):
    """How likely a frozen model, the generator, finds the completion of each prompt: with no plan, and later with one."""

    gold: str | None = Field(
        None,
        description="Column of the prompts' source that holds the completion; null: the label, else the answer of the row's conversation",
    )
    instruction: str = Field("", description="What the generator is told last; appended to the user's last turn")
    plan_block: str = Field(
        "\n\n### Plan ###\n{plan}\n", description="How a plan is shown to it, before the instruction; {plan} is the plan"
    )
    plan_instruction: str | None = Field(
        None,
        description="The instruction where there is a plan; null: the same, so that a plan that says nothing changes nothing but the block",
    )
    score_span: ScoreSpan = Field(
        "content+eot",
        description="What is scored: content, the completion's own tokens; content+eot, the token that ends the turn too; all, also what "
        "the template puts behind it",
    )
    max_length_tokens: int = Field(2048, ge=8, description="Longest prompt, plan and completion together")
    dtype: ChosenDtype = Field(
        "fp32",
        description="Precision of the generator. The first cut of the reward is 5e-4 nats a token, which bf16 does not tell from noise",
    )
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = Field(
        "auto", description="Attention implementation; auto: sdpa, or eager for a model that has no other"
    )
    micro_batch_tokens: int = Field(
        1024, ge=16, description="Most tokens in one pass; attention costs its square, so a CPU wants few, a GPU many"
    )
    gpus: float = operational(0.0, "Share of a GPU that the stage reserves; 0 computes on the CPU", ge=0.0, le=1.0)
    threads: int = operational(1, "OpenMP threads", ge=1)

    @field_validator("plan_block")
    @classmethod
    def _the_plan_has_a_place(cls, value: str) -> str:
        if value.count(PLAN_PLACE) != 1:
            raise ValueError(f"{value!r} has {value.count(PLAN_PLACE)} places {PLAN_PLACE} for the plan; give it one")
        return value

    @property
    def precision(self) -> Dtype:
        """The dtype that is computed in: what `auto` means for this device."""
        return self.precision_by(native_dtype)

    def precision_by(self, native: Native) -> Dtype:
        """The same for a device of a machine that computes `native`."""
        return native(self.gpus > 0) if self.dtype == "auto" else self.dtype
