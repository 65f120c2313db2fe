"""Settings of the model and training stages. Importable without torch: the command line and the UI read these models."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from data_processing.settings import Settings, local_path, operational
from rlhf_core.methods.online import ONLINE, Aggregation, KlKind, KlPlace, OnlineMethod
from rlhf_core.methods.preference import PREFERENCE, PreferenceMethod
from rlhf_core.methods.row import RowT, check, row, unread, value_at, with_value
from rlhf_core.precision import Dtype, Native, native_dtype

ChosenDtype = Literal["auto", "bf16", "fp32"]
TemplateArgument = bool | int | float | str | None


def _from_bool(value: Any) -> Any:
    """YAML reads a bare on or off as a bool."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


class BaseModelConfig(Settings):
    """The model the pipeline starts from."""

    path: str = Field(
        "smollm2-135m",
        description="A folder in Hugging Face layout, or a name: smollm2-135m (fetched), tiny-random (made on the spot)",
        json_schema_extra={"path": True},
    )
    trust_remote_code: bool = Field(False, description="Run Python code that comes with the model folder")
    chat_template: str | None = Field(
        None,
        description="Chat template to use instead of the tokenizer's: the name of a bundled one (deepseek_r1, gpt_oss, qwen3, "
        "qwen3_thinking), the path of a .jinja file, or Jinja; null keeps its own, or the plain one if it has none",
        json_schema_extra={"path": True},
    )
    template_date: datetime.date | None = Field(
        None,
        description="The day that a template with a date takes for today, in every stage; null: that of the model folder, "
        "else the day on which this stage runs",
    )
    chat_template_kwargs: dict[str, TemplateArgument] = Field(
        default_factory=dict,
        description="Arguments of the chat template in training, generation and evaluation, for example {enable_thinking: false}",
    )

    @field_validator("path")
    @classmethod
    def _a_folder_has_one_spelling(cls, value: str) -> str:
        """Behind links too: what is called otherwise would have another key."""
        return str(Path(value).expanduser().resolve()) if Path(value).expanduser().is_dir() else value

    @field_validator("path", "chat_template")
    @classmethod
    def _paths_are_absolute(cls, value: str | None) -> str | None:
        """What names a folder or a file here names the same one in a worker, which starts in another folder."""
        if value is None or "{" in value:
            return value
        is_path = value.startswith(("~", "./", "../")) or value.endswith(".jinja") or Path(value).is_dir()
        return local_path(value) if is_path else value


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


class TrainingConfig(Settings):
    """What every training stage has in common."""

    lora: LoraSettings = Field(default_factory=LoraSettings, description="Adapters")
    optimizer: OptimizerSettings = Field(default_factory=OptimizerSettings, description="Optimizer and schedule")
    engine: EngineSettings = Field(default_factory=EngineSettings, description="Hardware layout")
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
    checkpoint_every_steps: int = operational(20, "Steps between checkpoints to resume from; 0 keeps only the final one", ge=0)
    stall_after_s: float = operational(1800.0, "Seconds without an event after which the stage counts as hung", gt=0)


OwnSettings = dict[str, bool | int | float | str]


class TableConfig(TrainingConfig):
    """What training on a table has in common: how long it goes, what it is measured by on the way, and which step's weights stay."""

    batch_size: int = Field(8, ge=1, description="Conversations, pairs or judged answers an optimizer step, over all ranks")
    epochs: float = Field(1.0, gt=0.0, description="Passes over the table; ignored when max_steps is set")
    max_steps: int | None = Field(None, ge=1, description="Optimizer steps; null derives them from epochs")
    max_samples: int | None = Field(None, ge=1, description="Rows of the training split that are used, drawn by seed; null: all")
    eval_every_steps: int = Field(0, ge=0, description="Steps between passes over the validation split; 0: only at the end")
    keep_best: str | None = Field(
        None,
        description="Metric of the validation split by which the best step's weights are kept: eval_loss (the lower the better), "
        "eval_accuracy, eval_margin (the higher); null: the last step's are",
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="Passes over the validation split without a better keep_best after which training ends; null: never",
    )

    @model_validator(mode="after")
    def _the_best_is_looked_for(self) -> Self:
        if self.keep_best is not None and not self.eval_every_steps:
            raise ValueError(
                f"keep_best='{self.keep_best}' with eval_every_steps=0: only the last step is measured; say how often"
            )
        if self.keep_best is not None and not self.keep_best.startswith("eval_"):
            raise ValueError(f"keep_best='{self.keep_best}' is no metric of the validation split: their names begin with eval_")
        if self.patience is not None and self.keep_best is None:
            raise ValueError(f"patience={self.patience} without keep_best: say by which metric it is judged")
        return self


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

    granularity: Literal["answer", "step"] = Field(
        "answer", description="answer: the better of two answers scores higher; step: each step of an answer is right or wrong"
    )
    center_coef: float = Field(
        0.01, ge=0.0, description="Weight of the penalty (chosen + rejected)^2 that keeps scores centred at 0 (of answers)"
    )
    step_separator: str = Field("\n\n", min_length=1, description="What stands between the steps of an answer (of steps)")


class KtoSettings(Settings):
    """What KTO alone reads."""

    desirable_weight: float = Field(1.0, gt=0.0, description="Weight of chosen and desirable answers' losses")
    undesirable_weight: float = Field(1.0, gt=0.0, description="Weight of rejected and undesirable answers' losses")


class SimpoSettings(Settings):
    """What SimPO alone reads."""

    gamma: float = Field(1.0, ge=0.0, description="Target margin, in units of beta times nats a token")


class OrpoSettings(Settings):
    """What ORPO alone reads."""

    odds_ratio_weight: float = Field(0.1, gt=0.0, description="Weight of the odds ratio's loss beside the likelihood's (lambda)")


class PreferenceConfig(MethodConfig[PreferenceMethod], TableConfig):
    """Direct preference optimisation and kin, against a reference whose log-probs are computed once and kept, or against none."""

    methods = PREFERENCE
    otherwise: ClassVar[Mapping[str, Any]] = {"beta": 0.1, "nll_coef": 0.0}

    method: str = Field("dpo", description=f"{', '.join(PREFERENCE)}, or module:NAME of your own (docs/methods.md)")
    beta: float | None = Field(
        None, gt=0.0, description="Scale of the margin, and so of the implicit KL constraint; null: the method's own (dpo 0.1)"
    )
    label_smoothing: float | None = Field(
        None, ge=0.0, lt=0.5, description="Assumed share of flipped labels (cdpo, robust); null: the method's own (0.1)"
    )
    nll_coef: float | None = Field(
        None,
        ge=0.0,
        description="Weight of the chosen response's token-mean negative log-likelihood; null: the method's own (cpo 1, others 0)",
    )
    kto: KtoSettings = Field(default_factory=KtoSettings, description="What KTO alone reads")
    simpo: SimpoSettings = Field(default_factory=SimpoSettings, description="What SimPO alone reads")
    orpo: OrpoSettings = Field(default_factory=OrpoSettings, description="What ORPO alone reads")

    @model_validator(mode="after")
    def _answers_need_neighbours(self) -> PreferenceConfig:
        if self.row.learns_from == "answers" and self.batch_size < 2:
            raise ValueError(
                f"batch_size={self.batch_size} with method '{self.method}': its reference point needs another prompt's answers in the batch, so at least 2"
            )
        return self


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

    kind: Literal["reward_model", "procedures", "python"] = Field(
        description="reward_model: the trained scorer; procedures: the checker; python: a function"
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

    @model_validator(mode="after")
    def _function_iff_python(self) -> RewardSource:
        if (self.kind == "python") != (self.function is not None):
            raise ValueError(
                f"rewards: kind '{self.kind}' with function={self.function!r}: 'function' is needed for kind python and for no other"
            )
        return self


class CriticSettings(Settings):
    """What methods with a critic alone read."""

    learning_rate: float = Field(1e-3, ge=0.0, description="Peak learning rate of the critic")
    warmup_steps: int = Field(0, ge=0, description="First rounds that train only the critic")
    gae_lambda: float = Field(1.0, ge=0.0, le=1.0, description="GAE lambda")
    value_clip: float | None = Field(0.2, gt=0.0, description="Range of the clipped value loss; null: not clipped")


class AdaptiveKlSettings(Settings):
    """A coefficient of the KL that follows a target (arXiv 1909.08593, section 2.2)."""

    target_nats: float | None = Field(
        None, gt=0.0, description="KL to the reference, nats a response, that kl_coef is steered to; null: kl_coef is fixed"
    )
    horizon_responses: int = Field(
        10_000, ge=1, description="Responses after which a KL off by 20% or more has changed the coefficient about 1.2-fold"
    )


class OverlongPenaltySettings(Settings):
    """What long answers pay: from `buffer_tokens` below max_new_tokens on, in a straight line down to -factor (arXiv 2503.14476)."""

    factor: float | None = Field(
        None, ge=0.0, description="Penalty of an answer as long as can be; null: the method's own (dapo 1)"
    )
    buffer_tokens: int | None = Field(None, ge=1, description="Tokens over which it grows; null: a fifth of max_new_tokens")


class GateSettings(Settings):
    """Signs that a run goes wrong: each warns in a round where it shows, and stops the run after `patience_rounds` of them in a row."""

    patience_rounds: int = Field(3, ge=1, description="Rounds in a row after which a sign stops the run")
    max_truncated_fraction: float = Field(0.95, gt=0.0, le=1.0, description="Share of the responses cut at max_new_tokens")
    max_flat_fraction: float = Field(
        1.0, gt=0.0, le=1.0, description="Share of the prompts whose responses are all worth the same, from which on it is a sign"
    )
    max_mismatch_kl_nats: float | None = Field(
        None, gt=0.0, description="KL of the trainer's policy from what was sampled, nats a token; null: any"
    )
    min_entropy_nats: float | None = Field(None, ge=0.0, description="Entropy a token that the sampler draws with; null: any")
    max_length_growth: float | None = Field(
        None, gt=1.0, description="Mean length of the responses, as a multiple of the first round's; null: any"
    )


class OnlineConfig(MethodConfig[OnlineMethod]):
    """Online training: sample, score, compute advantages, update, send the weights to the sampler."""

    methods = ONLINE
    otherwise: ClassVar[Mapping[str, Any]] = {
        "kl_coef": 0.0,
        "clip_low": 0.2,
        "clip_high": 0.2,
        "max_refills": 0,
        "overlong_penalty.factor": 0.0,
    }

    method: str = Field("ppo", description=f"{', '.join(ONLINE)}, or module:NAME of your own (docs/methods.md)")
    steps: int = Field(8, ge=1, description="Rollout and update rounds")
    prompts_per_step: int = Field(8, ge=1, description="Prompts sampled each round")
    samples_per_prompt: int = Field(4, ge=1, description="Responses a prompt; group methods need at least 2")
    updates_per_step: int = Field(1, ge=1, description="Passes over each round's rollouts")
    mini_batches: int = Field(1, ge=1, description="Optimizer steps a pass")
    rewards: list[RewardSource] = Field(
        default_factory=lambda: [RewardSource(kind="reward_model")],
        description="Weighted sum of these; may be empty with a method that has a teacher, whose own rewards are only told",
    )
    reward_retries: int = operational(
        5,
        "Times a reward that failed for a while (time-out, network) is asked again before the stage is ended and tried again",
        ge=0,
    )
    reward_retry_wait_s: float = operational(
        1.0, "Seconds before it is first asked again; each later wait is twice as long, up to 60 s", gt=0
    )
    max_invalid_fraction: float = operational(
        0.5,
        "Share of a round's responses without a valid reward (None or NaN) above which the run stops (exit 11)",
        ge=0.0,
        le=1.0,
    )
    kl_coef: float | None = Field(
        None, ge=0.0, description="Weight of the KL to the reference (nats); null: the method's own (0.01, and 0 from dr_grpo on)"
    )
    kl_place: KlPlace | None = Field(
        None, description="reward: a penalty a token; loss: beside the policy's loss; null: the method's own"
    )
    kl_estimate: KlKind | None = Field(
        None, description="Estimate of the KL a token; null: the method's own, and k3 where that would be k1 in the loss"
    )
    adaptive_kl: AdaptiveKlSettings = Field(default_factory=AdaptiveKlSettings, description="Steering of kl_coef")
    score_clip: float | None = Field(None, gt=0.0, description="Scores are clipped to +- this; null: not at all")
    overlong_penalty: OverlongPenaltySettings = Field(default_factory=OverlongPenaltySettings, description="Long answers")
    max_refills: int | None = Field(
        None,
        ge=0,
        description="Times a round draws other prompts for groups of equal rewards, which teach nothing; null: the method's own (dapo 4, others 0)",
    )
    gamma: float = Field(1.0, gt=0.0, le=1.0, description="Discount a token")
    clipping: bool = Field(True, description="false: ratios are not clipped")
    clip_low: float | None = Field(
        None, gt=0.0, lt=1.0, description="Ratios below 1 - clip_low are clipped; null: the method's own (0.2)"
    )
    clip_high: float | None = Field(
        None, gt=0.0, description="Ratios above 1 + clip_high are clipped; null: the method's own (0.2, dapo 0.28)"
    )
    dual_clip: float | None = Field(None, gt=1.0, description="Bound of the loss for negative advantages; null: none")
    entropy_coef: float = Field(0.0, ge=0.0, description="Weight of the entropy bonus")
    aggregation: Aggregation | None = Field(
        None,
        description="How the tokens' losses become one: token_mean, sequence_mean, sequence_sum_mean, constant_length (over "
        "max_new_tokens); null: the method's own",
    )
    critic: CriticSettings = Field(default_factory=CriticSettings, description="What methods with a critic alone read")
    rollout: RolloutSettings = Field(default_factory=RolloutSettings, description="Sampling")
    async_steps: int = Field(
        0,
        ge=0,
        le=16,
        description="Rounds that are sampled ahead while one trains, so with weights that many rounds older, and never more; 0: in turn",
    )
    rollout_correction: RolloutCorrection = Field(
        RolloutCorrection.auto,
        description="Weights exp(trainer - sampler log-prob) on the loss. truncate: clamped; mask, sequence_mask: 0 where a token's, "
        "or a whole response's mean, is out of bounds; auto: truncate with async_steps, else none",
    )
    correction_low: float = Field(0.0, ge=0.0, lt=1.0, description="Lower bound of the correction's weights")
    correction_high: float = Field(2.0, gt=1.0, description="Upper bound of the correction's weights")
    gates: GateSettings = Field(default_factory=GateSettings, description="Signs that a run goes wrong")

    @model_validator(mode="after")
    def _groups_need_samples(self) -> OnlineConfig:
        if self.samples_per_prompt < self.row.min_samples:
            raise ValueError(
                f"samples_per_prompt={self.samples_per_prompt} with method '{self.method}': it compares the samples of a prompt, and needs at least {self.row.min_samples}"
            )
        if (self.prompts_per_step * self.samples_per_prompt) % self.mini_batches:
            raise ValueError(
                f"mini_batches={self.mini_batches} does not divide prompts_per_step * samples_per_prompt = {self.prompts_per_step * self.samples_per_prompt}"
            )
        return self

    @model_validator(mode="after")
    def _something_says_what_responses_are_worth(self) -> OnlineConfig:
        if not self.rewards and not self.has_teacher:
            raise ValueError(f"rewards=[] with method '{self.method}', which learns from them: give at least one")
        return self

    @model_validator(mode="after")
    def _refills_need_groups(self) -> OnlineConfig:
        if self.value("max_refills") and self.samples_per_prompt < 2:
            raise ValueError(
                f"max_refills={self.value('max_refills')} with samples_per_prompt=1: a single answer is always a group of equal rewards; use 0, or more samples"
            )
        return self

    @model_validator(mode="after")
    def _the_buffer_fits(self) -> OnlineConfig:
        buffer, longest = self.overlong_penalty.buffer_tokens, self.rollout.max_new_tokens
        if buffer is not None and buffer > longest:
            raise ValueError(
                f"overlong_penalty.buffer_tokens={buffer} is more than rollout.max_new_tokens={longest}: every answer would pay; lower it"
            )
        return self

    @model_validator(mode="after")
    def _a_kl_in_the_loss_has_a_gradient(self) -> OnlineConfig:
        if self.kl_estimate == "k1" and self.kl_in("loss"):
            raise ValueError("kl_estimate='k1' in the loss: its gradient is 0 on average; use k2 or k3, or kl_place 'reward'")
        return self

    @model_validator(mode="after")
    def _a_steered_coefficient_starts_somewhere(self) -> OnlineConfig:
        if self.adaptive_kl.target_nats is not None and not self.value("kl_coef"):
            raise ValueError(
                f"adaptive_kl.target_nats={self.adaptive_kl.target_nats} with kl_coef 0: the coefficient is multiplied, so it has to start above 0; set kl_coef"
            )
        return self

    @property
    def has_critic(self) -> bool:
        """Whether values are learnt."""
        return "critic" in self.row.roles

    @property
    def has_teacher(self) -> bool:
        """Whether a teacher says what the policy's tokens are worth."""
        return "teacher" in self.row.roles

    @property
    def uses_kl(self) -> bool:
        """Whether a KL to the reference is paid for."""
        return bool(self.value("kl_coef") > 0)

    def kl_in(self, place: KlPlace) -> bool:
        """Whether the KL is paid for there; in the rewards it is, the policy is scored before it is updated."""
        return self.uses_kl and (self.kl_place or self.row.kl_place) == place

    @property
    def estimate_of_kl(self) -> KlKind:
        """Which estimate the KL is."""
        own = self.row.kl_estimate
        return self.kl_estimate or ("k3" if own == "k1" and self.kl_in("loss") else own)

    @property
    def every_row_has_a_gradient(self) -> bool:
        """Whether a response whose advantages are all 0 still moves the policy: by a KL or an entropy in the loss."""
        return self.entropy_coef > 0 or self.kl_in("loss")

    def value(self, setting: str) -> Any:
        """As for every method; bounds that are never reached where nothing is clipped."""
        if not self.clipping and setting in ("clip_low", "clip_high"):
            return 1.0 if setting == "clip_low" else math.inf
        return super().value(setting)

    @property
    def correction(self) -> Literal["truncate", "mask", "sequence_mask"] | None:
        """The correction that `rollout_correction` means."""
        if self.rollout_correction is RolloutCorrection.auto:
            return "truncate" if self.async_steps else None
        return None if self.rollout_correction is RolloutCorrection.none else self.rollout_correction.value


class MergeConfig(Settings):
    """Several models to one."""

    method: Literal["linear", "ties", "dare_linear", "dare_ties"] = Field(
        "linear",
        description="linear: the mean of the models; ties, dare_linear, dare_ties: the input 'base' and what becomes of the models' "
        "differences from it",
    )
    weights: dict[str, float] = Field(
        default_factory=dict, description="Weights of the models by the names of the inputs; 1 for those that are not named"
    )
    density: float = Field(0.5, gt=0.0, le=1.0, description="Share of each difference that stays (all but linear)")


class ConvertConfig(Settings):
    """Training checkpoint to Hugging Face folder."""

    dtype: Dtype = Field("bf16", description="Precision of the saved weights")
    max_shard_gib: float = Field(5.0, gt=0.0, description="Largest safetensors file, GiB")
