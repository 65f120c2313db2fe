"""Settings of supervised fine-tuning, distillation and reward models."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from rlhf_core.settings.segments import SegmentSettings
from rlhf_core.settings.training import TableConfig


class SftConfig(TableConfig):
    """Supervised fine-tuning on the assistant turns of the sft table, and on its texts without turns."""

    loss_on: Literal["all", "last"] = Field(
        "all",
        description="Which assistant turns of a conversation are learnt: all, or the last (of those with a weight above 0) only",
    )
    condition: str | None = Field(
        None,
        description="Line below the first question, with the row's column 'condition' for {condition}: 'Quality: {condition}'; null: "
        "none",
    )
    cut_texts: bool = Field(
        False, description="Texts without turns are cut into windows of max_length_tokens instead of being too long"
    )
    neftune_alpha: float | None = Field(
        None, gt=0.0, description="Noise on input embeddings while training, +-alpha / sqrt(tokens x width); null: none"
    )

    @field_validator("condition")
    @classmethod
    def _condition_has_its_place(cls, text: str | None) -> str | None:
        if text is not None and "{condition}" not in text:
            raise ValueError(
                f"'{text}' has no {{condition}}, where the row's own would stand: for example 'Quality: {{condition}}'"
            )
        return text


DistillationKind = Literal["forward_kl", "reverse_kl", "jsd"]


class DistillConfig(SftConfig):
    """Knowledge distillation: SFT's rows and options, with a teacher's next-token distributions instead of the rows' own tokens."""

    divergence: DistillationKind = Field(
        "forward_kl",
        description="forward_kl: KL(teacher || student); reverse_kl: KL(student || teacher); jsd: from both to their mixture",
    )
    jsd_beta: float = Field(
        0.5, gt=0.0, lt=1.0, description="Share of the teacher in the mixture of jsd, and of its KL in the loss"
    )
    temperature: float = Field(1.0, gt=0.0, description="Both models' logits are divided by it")


class RewardModelConfig(TableConfig):
    """A scalar reward head trained on pairs (Bradley-Terry), or on answers whose steps are judged."""

    granularity: Literal["answer", "step", "segment"] = Field(
        "answer",
        description="answer: the better of two answers scores higher; step: each step of an answer is right or wrong; segment: the mean "
        "over an answer's segments is higher",
    )
    segment: SegmentSettings = Field(
        default_factory=SegmentSettings, description="Segments and the fit of their rewards (of segments)"
    )
    center_coef: float = Field(
        0.01, ge=0.0, description="Weight of the penalty (chosen + rejected)^2 that keeps scores centred at 0 (of answers)"
    )
    step_separator: str = Field("\n\n", min_length=1, description="What stands between the steps of an answer (of steps)")

    @model_validator(mode="after")
    def _the_fit_is_of_the_weights_that_stay(self) -> RewardModelConfig:
        if self.granularity == "segment" and self.keep_best is not None:
            raise ValueError(
                f"keep_best='{self.keep_best}' with granularity 'segment': the fit by position is made of the last weights; leave it out"
            )
        return self
