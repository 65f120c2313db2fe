"""Settings of online training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from data_processing.settings import Settings, local_path, operational
from rlhf_core.methods.online import ONLINE, Aggregation, KlKind, KlPlace, OnlineMethod
from rlhf_core.settings.credit import CreditSource, DrcaCredit, OutcomeCredit
from rlhf_core.settings.environment import EnvironmentSettings
from rlhf_core.settings.repulse import RepulseSettings, RewardTransformSettings
from rlhf_core.settings.rewards.kinds import RewardSource, the_reward_model
from rlhf_core.settings.rollout import RolloutCorrection, RolloutSettings
from rlhf_core.settings.training import MethodConfig


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
    min_effective_samples: float | None = Field(
        None,
        ge=1.0,
        description="Of repulse: the proposal's samples a prompt that count, of samples_per_prompt, on average; null: any",
    )


class EvaluationSettings(Settings):
    """How the policy is measured on the way, where `eval_every_steps` says so: on prompts of the validation split."""

    max_prompts: int = Field(32, ge=1, description="Prompts that are answered, drawn by seed")
    greedy: bool = Field(
        True, description="Likeliest answers, which differ between evaluations by the weights alone; false: sampled"
    )


class CanarySettings(Settings):
    """Pairs of a good and a bad answer whose rewards are looked at while the run goes on; they teach nothing."""

    every_steps: int | None = Field(None, ge=1, description="Rounds from one look to the next; null: no looks")
    pairs: int = Field(8, ge=1, description="Pairs that are scored each time, the first ones")
    path: str | None = Field(
        None,
        description="File of rows with chosen and rejected answers, with the columns that the rewards need; null: the data's preference "
        "table, validation split",
        json_schema_extra={"path": True},
    )
    max_drift: float = Field(
        0.25, gt=0.0, description="Mean change of an answer's worth, in deviations of all of them, from which on it is a sign"
    )
    min_right_fraction: float = Field(
        0.5, ge=0.0, le=1.0, description="Share of the pairs whose good answer is worth more, below which it is a sign"
    )

    @field_validator("path")
    @classmethod
    def _path_is_absolute(cls, value: str | None) -> str | None:
        return None if value is None else local_path(value)


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
        default_factory=the_reward_model,
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
    reward_transform: RewardTransformSettings = Field(
        default_factory=RewardTransformSettings, description="What low rewards are turned into"
    )
    score_clip: float | None = Field(None, gt=0.0, description="Scores are clipped to +- this; null: not at all")
    overlong_penalty: OverlongPenaltySettings = Field(default_factory=OverlongPenaltySettings, description="Long answers")
    max_refills: int | None = Field(
        None,
        ge=0,
        description="Times a round draws other prompts for groups of equal rewards, which teach nothing; null: the method's own (dapo 4, others 0)",
    )
    gamma: float = Field(1.0, gt=0.0, le=1.0, description="Discount of a token, or of a turn")
    gamma_by: Literal["token", "turn"] = Field(
        "token", description="turn: rewards are discounted where an environment has answered, not within a turn"
    )
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
    repulse: RepulseSettings = Field(default_factory=RepulseSettings, description="What repulse and repulse_base alone read")
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
    evaluation: EvaluationSettings = Field(default_factory=EvaluationSettings, description="Measuring on the way")
    credit: CreditSource = Field(
        default_factory=OutcomeCredit,
        description="Where the reward of a response goes: outcome, process, drca, segment or own (docs/credit.md)",
    )
    environment: EnvironmentSettings = Field(
        default_factory=EnvironmentSettings, description="What answers between the policy's turns"
    )
    keep_below: float | None = Field(
        None, description="Responses worth less are gathered in bad_samples.parquet, whoever drew them; null: none"
    )
    gates: GateSettings = Field(default_factory=GateSettings, description="Signs that a run goes wrong")
    canary: CanarySettings = operational(
        CanarySettings(), "Known answers that are scored on the way; rewards that drift are a sign"
    )

    @model_validator(mode="after")
    def _groups_need_samples(self) -> OnlineConfig:
        if self.samples_per_prompt < self.row.min_samples:
            raise ValueError(
                f"samples_per_prompt={self.samples_per_prompt} with method '{self.method}': it compares the samples of a prompt, and needs at least {self.row.min_samples}"
            )
        if self.samples_per_prompt == 1 and any(source.normalise == "group" for source in self.rewards):
            raise ValueError(
                "samples_per_prompt=1 with a reward that is normalised by group: a single response has nothing to be compared with; draw "
                "more, or use normalise 'running' or null"
            )
        if self.row.min_samples > 1 and self.prompts_per_step % self.mini_batches:
            raise ValueError(
                f"mini_batches={self.mini_batches} with prompts_per_step={self.prompts_per_step} and method '{self.method}', which compares the "
                "samples of a prompt: they would be cut apart, and what they share computed twice; take a divisor of prompts_per_step"
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
    def _turns_need_an_environment(self) -> OnlineConfig:
        asked = [source.kind for source in self.rewards if source.kind == "environment"]
        if not self.environment.is_given and (asked or self.gamma_by == "turn"):
            given = "a reward of kind 'environment'" if asked else "gamma_by='turn'"
            raise ValueError(f"{given} without an environment: name its class in environment.path, or leave it out")
        return self

    @model_validator(mode="after")
    def _credit_reaches_tokens(self) -> OnlineConfig:
        kind = self.credit.kind
        if kind in ("drca", "segment", "own") and self.row.min_samples > 1:
            raise ValueError(
                f"credit '{kind}' with method '{self.method}', which gives every token of a response the same advantage: use a method with "
                "a critic or with returns (ppo, reinforce, reinforce_pp), or leave credit out"
            )
        if kind in ("drca", "segment", "own") and self.has_teacher:
            raise ValueError(
                f"credit '{kind}' with method '{self.method}', which learns from a teacher and not from rewards: leave credit out"
            )
        if kind == "process" and not any(source.of_tokens for source in self.rewards):
            raise ValueError(
                "credit 'process' and no reward of steps or turns: add process_reward_model or environment with of_steps or of_turns 'each', "
                "or leave credit out"
            )
        if kind == "segment":
            if self.environment.is_given:
                raise ValueError(
                    "credit 'segment' with an environment: responses of several turns have no segments; leave one of them out"
                )
            models = [source for source in self.rewards if source.kind == "reward_model"]
            if not models or any(source.normalise for source in models):
                raise ValueError(
                    "credit 'segment' takes the rewards of segments from a reward of kind 'reward_model', and has a scale for them: name one "
                    "without normalise, or leave credit out"
                )
        if isinstance(self.credit, DrcaCredit):
            if self.environment.is_given:
                raise ValueError(
                    "credit 'drca' with an environment: responses of several turns have no units; leave one of them out"
                )
            if any(source.normalise == "group" for source in self.rewards):
                raise ValueError(
                    "credit 'drca' with a reward that is normalised by group: a response without a unit has no group; use 'running' or null"
                )
            others = [
                source.kind for source in self.rewards if source.kind != "reward_model" and (source.weight or source.final_weight)
            ]
            if self.credit.counterfactual == "mask_attention" and others:
                raise ValueError(
                    f"counterfactual 'mask_attention' with a reward of kind '{others[0]}': a unit can be hidden from a trained reward model "
                    "alone; use mask or delete, or rewards of kind 'reward_model'"
                )
        return self

    @model_validator(mode="after")
    def _a_proposal_takes_turns(self) -> OnlineConfig:
        if not self.has_proposal:
            return self
        unfit = {
            "async_steps": (self.async_steps > 0, "its sampler draws for two policies in turn; use 0"),
            "environment": (self.environment.is_given, "its proposal draws answers of one turn; leave it out"),
            "entropy_coef": (self.entropy_coef > 0, "its policy also learns from what the proposal drew; use 0"),
            "kl_place": (self.kl_in("loss"), "its policy also learns from what the proposal drew; use 'reward'"),
        }
        if found := next((name for name, (is_set, _) in unfit.items() if is_set), None):
            value = "given" if found == "environment" else getattr(self, found)
            raise ValueError(f"{found}={value!r} with method '{self.method}': {unfit[found][1]}")
        if any(source.normalise == "group" for source in self.rewards):
            raise ValueError(
                f"a reward that is normalised by group with method '{self.method}', which compares two policies' samples: use 'running' or null"
            )
        return self

    @model_validator(mode="after")
    def _the_best_is_measured(self) -> OnlineConfig:
        if self.keep_best is not None and not self.keep_best.startswith("eval_reward"):
            raise ValueError(
                f"keep_best='{self.keep_best}' is not measured online: use 'eval_reward', or 'eval_reward/NAME' of one of the rewards"
            )
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
    def has_proposal(self) -> bool:
        """Whether a second policy looks for bad responses."""
        return "proposal" in self.row.roles

    def at(self, step: int) -> Self:
        """With the values that hold in round `step` (from 0), where some change over the run."""
        share = step / max(self.steps - 1, 1)
        return self.model_copy(update={"repulse": self.repulse.at(share)})

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
