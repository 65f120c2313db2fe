"""The settings of a whole run: one section a stage, and how the run as a whole goes. No torch, no Prefect here."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from pydantic import Field, model_validator

from data_processing.config import DataConfig
from data_processing.settings import Settings, operational
from evaluation.config import CompareConfig, EvaluateConfig
from rlhf_core.config import BaseModelConfig, ConvertConfig, OnlineConfig, PreferenceConfig, RewardModelConfig, SftConfig
from tasks.runtime.config import RuntimeConfig


class OptionalStage(str, Enum):
    """Stages a run can do without."""

    sft = "sft"
    reward_model = "reward_model"
    preference = "preference"
    online = "online"


MODELS = ("base", "sft", "preference", "online")


class RunConfig(Settings):
    """The run as a whole: its name, its seed, what it leaves out, where it is registered."""

    name: str = operational("align", "Name of the run, in its folder and in the tracker", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(17, ge=0, le=2**31 - 1, description="Seed of everything random; each stage derives its own from it")
    experiment: str = operational("alignflow", "MLflow experiment that holds the runs", min_length=1)
    registered_model: str | None = operational(
        "alignflow", "Name under which the best model is registered as 'challenger'; null: not registered"
    )
    skip: list[OptionalStage] = Field(
        default_factory=list, description="Stages left out; what follows starts from the stage before them"
    )

    @model_validator(mode="after")
    def _skips_each_stage_once(self) -> RunConfig:
        if len(set(self.skip)) != len(self.skip):
            raise ValueError(f"skip names a stage twice: {[s.value for s in self.skip]}; name each once")
        return self


class PipelineConfig(Settings):
    """Everything a run is told, one section a stage. What `alignflow run --config FILE` reads."""

    run: RunConfig = Field(default_factory=RunConfig, description="The run as a whole")
    model: BaseModelConfig = Field(default_factory=BaseModelConfig, description="The model to start from")
    data: DataConfig = Field(default_factory=DataConfig, description="What is learned from")
    sft: SftConfig = Field(default_factory=SftConfig, description="Supervised fine-tuning")
    reward_model: RewardModelConfig = Field(default_factory=RewardModelConfig, description="The scorer")
    preference: PreferenceConfig = Field(default_factory=PreferenceConfig, description="Direct preference optimisation")
    online: OnlineConfig = Field(default_factory=OnlineConfig, description="Online training (PPO, GRPO)")
    convert: ConvertConfig = Field(default_factory=ConvertConfig, description="Checkpoints to Hugging Face folders")
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig, description="Measuring each model")
    compare: CompareConfig = Field(default_factory=CompareConfig, description="Setting the models against each other")
    runtime: RuntimeConfig = Field(default_factory=RuntimeConfig, description="How stages are executed; changes no result")

    @model_validator(mode="after")
    def _sections_agree(self) -> PipelineConfig:
        problems = [p for check in _CHECKS if (p := check(self))]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def has(self, stage: OptionalStage) -> bool:
        """Whether the run contains the stage."""
        return stage not in self.run.skip

    @property
    def models(self) -> tuple[str, ...]:
        """The models that are evaluated, in the order of the report."""
        skipped = {stage.value for stage in self.run.skip}
        return tuple(name for name in MODELS if name not in skipped)

    @property
    def scores_online(self) -> bool:
        """Whether online training asks the trained reward model."""
        return any(source.kind == "reward_model" for source in self.online.rewards)

    @property
    def measures_reward(self) -> bool:
        """Whether evaluation asks the trained reward model."""
        return "reward" in self.evaluate.metrics


def _online_has_its_rewards(config: PipelineConfig) -> str | None:
    if config.has(OptionalStage.online) and config.scores_online and not config.has(OptionalStage.reward_model):
        return (
            "online.rewards asks for kind 'reward_model' but run.skip leaves that stage out; "
            "take it out of run.skip or use rewards of kind 'procedures' or 'python'"
        )
    return None


def _reward_metric_has_a_scorer(config: PipelineConfig) -> str | None:
    if config.measures_reward and not config.has(OptionalStage.reward_model):
        return (
            "evaluate.metrics contains 'reward' but run.skip leaves the reward_model stage out; "
            "take 'reward' out of evaluate.metrics or 'reward_model' out of run.skip"
        )
    return None


def _comparison_has_its_baseline(config: PipelineConfig) -> str | None:
    baseline = config.compare.baseline
    if baseline not in config.models:
        return (
            f"compare.baseline names '{baseline}', which this run does not evaluate; allowed are {', '.join(config.models)} "
            f"(run.skip = {[stage.value for stage in config.run.skip]})"
        )
    if baseline in config.compare.candidates:
        return f"compare.candidates contains the baseline '{baseline}'; a model cannot be its own challenger"
    return None


def _candidates_are_models(config: PipelineConfig) -> str | None:
    unknown = [name for name in config.compare.candidates if name not in MODELS]
    if unknown:
        return f"compare.candidates names {unknown}; allowed are {', '.join(MODELS)}"
    return None


_CHECKS: tuple[Callable[[PipelineConfig], str | None], ...] = (
    _online_has_its_rewards,
    _reward_metric_has_a_scorer,
    _comparison_has_its_baseline,
    _candidates_are_models,
)
