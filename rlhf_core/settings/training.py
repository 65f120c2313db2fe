"""Settings that every training stage has, and those that training on tables and methods have in common."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Annotated, Any, ClassVar, Generic, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from data_processing.settings import Settings, operational
from rlhf_core.methods.row import RowT, check, row, unread, value_at, with_value
from rlhf_core.precision import Dtype, Native, native_dtype

ChosenDtype = Literal["auto", "bf16", "fp32"]


def _from_bool(value: Any) -> Any:
    """YAML reads a bare on or off as a bool."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


class LoraSettings(Settings):
    """Low-rank adapters; `rank: 0` trains all weights."""

    rank: int = Field(16, ge=0, le=1024, description="Rank of the adapters; 0 trains all weights")
    alpha: float = Field(32.0, gt=0, description="Adapter output is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="Dropout on adapter inputs")
    target_modules: list[str] | None = Field(
        None, description="Names of the linear layers that get adapters; null: all but the head"
    )


class Schedule(str, Enum):
    """How the learning rate goes after warm-up."""

    constant = "constant"
    linear = "linear"
    cosine = "cosine"


class OptimizerSettings(Settings):
    """AdamW and its schedule."""

    learning_rate: float = Field(5e-4, ge=0.0, description="Peak learning rate")
    schedule: Schedule = Field(Schedule.cosine, description="Shape after warm-up")
    warmup_fraction: float = Field(0.1, ge=0.0, le=1.0, description="Share of the steps that ramp up linearly")
    weight_decay: float = Field(0.0, ge=0.0, description="Decoupled weight decay")
    beta1: float = Field(0.9, ge=0.0, lt=1.0, description="AdamW beta1")
    beta2: float = Field(0.999, ge=0.0, lt=1.0, description="AdamW beta2")
    epsilon: float = Field(1e-8, gt=0.0, description="AdamW epsilon")
    max_grad_norm: float = Field(1.0, gt=0.0, description="Gradients are clipped to this global norm")


class Packing(str, Enum):
    """Whether rows lie after one another in one line of tokens, or padded in a batch."""

    auto = "auto"
    on = "on"
    off = "off"


class EngineSettings(Settings):
    """How training is laid out on the hardware: ranks, ZeRO, precision, micro-batches."""

    world_size: int = Field(1, ge=1, description="Training processes (one a GPU, or one or two on a CPU)")
    gpus_per_rank: float = Field(
        0.0, ge=0.0, le=1.0, description="GPUs each rank reserves; 0 computes on the CPU, whatever the machine has"
    )
    zero_stage: int = Field(1, ge=0, le=3, description="DeepSpeed ZeRO stage")
    offload_optimizer: bool = Field(False, description="Keep optimizer states in CPU memory (ZeRO 1-3)")
    dtype: ChosenDtype = Field(
        "auto",
        description="Compute precision; auto: bf16 where the device computes it natively, else fp32; bf16 keeps fp32 master weights and needs zero_stage >= 1",
    )
    micro_batch_tokens: int = Field(2048, ge=16, description="Most tokens in one forward and backward pass")
    packing: Annotated[Packing, BeforeValidator(_from_bool)] = Field(
        Packing.auto,
        description="Pack rows into one line of tokens: auto where the model computes that right, else pad; on refuses to pad",
    )
    gradient_checkpointing: bool = Field(False, description="Recompute activations in the backward pass")
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = Field(
        "auto", description="Attention implementation; auto: sdpa, or eager for a model that has no other"
    )
    threads_per_rank: int = operational(1, "OpenMP threads a process; more than one collapses when cores are shared", ge=1)

    @property
    def precision(self) -> Dtype:
        """The dtype that is computed in: what `auto` means for this device."""
        return self.precision_by(native_dtype)

    def precision_by(self, native: Native) -> Dtype:
        """The same for a device of a machine that computes `native`."""
        if self.dtype != "auto":
            return self.dtype
        return native(self.gpus_per_rank > 0) if self.zero_stage else "fp32"

    @model_validator(mode="after")
    def _bf16_needs_master_weights(self) -> EngineSettings:
        if self.dtype == "bf16" and self.zero_stage == 0:
            raise ValueError(
                "dtype 'bf16' with zero_stage 0 trains without fp32 master weights and loses updates; use zero_stage 1, 2 or 3, or dtype 'fp32'"
            )
        return self


class OrderSettings(Settings):
    """How often rows come, and in which order. Sources are named as the table's column `source` has them: a file's or dataset's name."""

    source_weights: dict[str, Annotated[float, Field(ge=0.0)]] = Field(
        default_factory=dict,
        description="How much oftener a source's rows come than those of others; 1 where not named, 0: never",
    )
    temperature: float = Field(
        1.0, gt=0.0, description="Sources have shares (weight x rows)^(1 / temperature): above 1 small ones come oftener"
    )
    curriculum: Literal["none", "length", "pass_rate"] = Field(
        "none",
        description="The first pass goes from short to long (length), or from the highest to the lowest column pass_rate; none: shuffled",
    )

    @property
    def mixes_nothing(self) -> bool:
        """Whether every row comes equally often."""
        return self.temperature == 1.0 and set(self.source_weights.values()) <= {1.0}


class TrainingConfig(Settings):
    """What every training stage has in common."""

    lora: LoraSettings = Field(default_factory=LoraSettings, description="Adapters")
    optimizer: OptimizerSettings = Field(default_factory=OptimizerSettings, description="Optimizer and schedule")
    engine: EngineSettings = Field(default_factory=EngineSettings, description="Hardware layout")
    order: OrderSettings = Field(default_factory=OrderSettings, description="Mixing of sources, and curriculum")
    ema_decay: float | None = Field(
        None,
        gt=0.0,
        lt=1.0,
        description="Share of an exponential moving average of the weights that an optimizer step keeps (less in the first steps): the "
        "average is what is measured on the way and what is saved; null: the weights themselves",
    )
    max_length_tokens: int = Field(
        1024, ge=8, description="Longest sequence (prompt and response); longer rows are handled by `overlong`"
    )
    overlong: Literal["error", "drop"] = Field("error", description="What happens to rows longer than max_length_tokens")
    max_dropped_fraction: float = Field(
        0.05,
        ge=0.0,
        le=1.0,
        description="Share of rows that are too long, and share that the chat template cannot render, above which the stage stops "
        "(exit 11)",
    )
    eval_every_steps: int = Field(
        0, ge=0, description="Steps between evaluations on the validation split; 0: only at the end, and of online training none"
    )
    keep_best: str | None = Field(
        None,
        description="Metric of the validation split by which the best step's weights are kept: eval_loss (the lower the better), "
        "eval_accuracy, eval_margin, eval_reward (the higher); null: the last step's are",
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="Evaluations without a better keep_best after which training ends; null: never",
    )
    checkpoint_every_steps: int = operational(20, "Steps between checkpoints to resume from; 0 keeps only the final one", ge=0)
    stall_after_s: float = operational(1800.0, "Seconds without an event after which the stage counts as hung", gt=0)

    @model_validator(mode="after")
    def _the_best_is_looked_for(self) -> Self:
        if self.keep_best is not None and not self.eval_every_steps:
            raise ValueError(
                f"keep_best='{self.keep_best}' with eval_every_steps=0: only the last step is measured; set how often it is"
            )
        if self.keep_best is not None and not self.keep_best.startswith("eval_"):
            raise ValueError(
                f"keep_best='{self.keep_best}' is no metric of the validation split: use one whose name begins with eval_"
            )
        if self.patience is not None and self.keep_best is None:
            raise ValueError(
                f"patience={self.patience} without keep_best: set that to the metric it is judged by, or leave patience out"
            )
        return self


OwnSettings = dict[str, bool | int | float | str]


class TableConfig(TrainingConfig):
    """What training on a table has in common: how long it goes."""

    batch_size: int = Field(8, ge=1, description="Conversations, pairs or judged answers an optimizer step, over all ranks")
    epochs: float = Field(1.0, gt=0.0, description="Passes over the table; ignored when max_steps is set")
    max_steps: int | None = Field(None, ge=1, description="Optimizer steps; null derives them from epochs")
    max_samples: int | None = Field(None, ge=1, description="Rows of the training split that are used, drawn by seed; null: all")


class MethodConfig(TrainingConfig, Generic[RowT]):
    """Settings of a stage whose method is a row of a table; settings that are null are the method's own to choose."""

    methods: ClassVar[Mapping[str, Any]]
    otherwise: ClassVar[Mapping[str, Any]]

    method: str
    own: OwnSettings = Field(default_factory=dict, description="What a method of your own reads, by name")

    @classmethod
    def kind(cls) -> type[RowT]:
        """The class of the rows."""
        kind: type[RowT] = type(next(iter(cls.methods.values())))
        return kind

    @property
    def row(self) -> RowT:
        """What the method is made of."""
        found: RowT = row(self.methods, self.kind(), self.method)
        return found

    def value(self, setting: str) -> Any:
        """What the method reads of a dotted setting: where that is null its own, or what it is for methods that have none."""
        value = value_at(self, setting)
        return self.row.defaults.get(setting, self.otherwise.get(setting)) if value is None else value

    def values(self, reads: Mapping[str, str]) -> dict[str, Any]:
        """Arguments by parameter, of settings by parameter."""
        return {parameter: self.value(setting) for parameter, setting in reads.items()}

    def settled(self) -> Self:
        """The same with the method's own values instead of nulls: so it is shown, planned with and part of the key."""
        settings, own = self, {**self.otherwise, **self.row.defaults}
        for path, value in own.items():
            if value_at(self, path) is None:
                settings = with_value(settings, path, value)
        return settings

    def unread(self) -> dict[str, Any]:
        """The settings that are not at their default, and that other methods read and this one does not."""
        return unread(self, self.methods, self.row)

    @field_validator("method")
    @classmethod
    def _method_is_there(cls, name: str) -> str:
        row(cls.methods, cls.kind(), name)
        return name

    @model_validator(mode="after")
    def _settings_suit_the_method(self) -> Self:
        check(self, self.method, self.row)
        return self
