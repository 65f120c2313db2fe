"""The settings of a whole run: its pipeline of entries, one section a stage, and how the run as a whole goes. No torch, no Prefect here."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from data_processing.config import DataConfig
from data_processing.settings import Settings, operational
from evaluation.config import CompareConfig, EvaluateConfig
from flows.settings.entries import Entries, name_problem
from rlhf_core.settings.models import BaseModelConfig, ConvertConfig, MergeConfig
from rlhf_core.settings.online import OnlineConfig
from rlhf_core.settings.own_answers import IterativeConfig, SampleConfig
from rlhf_core.settings.preference import PreferenceConfig
from rlhf_core.settings.supervised import DistillConfig, RewardModelConfig, SftConfig
from rlhf_core.settings.vr_cli import VrCliBaselineConfig
from tasks.runtime.contract.config import RuntimeConfig

# What MLflow refuses in the name of a registered model, or cannot be asked for by afterwards.
_NOT_IN_MODEL_NAMES = "/:%\"'"


class RunConfig(Settings):
    """The run as a whole: its name, its seed, where it is registered."""

    name: str = operational("align", "Name of the run, in its folder and in the tracker", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(17, ge=0, le=2**31 - 1, description="Seed of everything random; each stage derives its own from it")
    experiment: str = operational("alignflow", "MLflow experiment that holds the runs", min_length=1)
    registered_model: str | None = operational(
        "alignflow", "Name under which the best model is registered as 'challenger'; null: not registered"
    )

    @field_validator("registered_model")
    @classmethod
    def _mlflow_takes_the_name(cls, name: str | None) -> str | None:
        if name is not None and (refused := [mark for mark in _NOT_IN_MODEL_NAMES if mark in name] or not name.strip(" .")):
            what = f"holds {', '.join(map(repr, refused))}" if isinstance(refused, list) else "is no name"
            better = "".join("-" if mark in _NOT_IN_MODEL_NAMES else mark for mark in name).strip(" .") or "my-model"
            raise ValueError(f"'{name}' {what}, which MLflow does not take; for example {better}")
        return name


class PipelineConfig(Settings):
    """Everything a run is told: its entries, and one section a stage. What `alignflow run --config FILE` reads."""

    run: RunConfig = Field(default_factory=RunConfig, description="The run as a whole")
    pipeline: Entries = Field(
        default_factory=dict,
        description="What is trained from what, by name; null takes an entry out. Base model and data are there by themselves",
    )
    model: BaseModelConfig = Field(default_factory=BaseModelConfig, description="The model to start from")
    data: DataConfig = Field(default_factory=DataConfig, description="What is learned from")
    sft: SftConfig = Field(default_factory=SftConfig, description="Supervised fine-tuning")
    reward_model: RewardModelConfig = Field(default_factory=RewardModelConfig, description="The scorer")
    preference: PreferenceConfig = Field(default_factory=PreferenceConfig, description="Direct preference optimisation")
    online: OnlineConfig = Field(default_factory=OnlineConfig, description="Online training (PPO, GRPO)")
    sample: SampleConfig = Field(default_factory=SampleConfig, description="Tables from a model's own answers")
    iterative: IterativeConfig = Field(default_factory=IterativeConfig, description="Preference training on own answers")
    distill: DistillConfig = Field(default_factory=DistillConfig, description="Learning from a teacher's distributions")
    merge: MergeConfig = Field(default_factory=MergeConfig, description="Several models to one, without training")
    vr_cli_baseline: VrCliBaselineConfig = Field(
        default_factory=VrCliBaselineConfig, description="What completions are worth without a plan (VR-CLI)"
    )
    convert: ConvertConfig = Field(default_factory=ConvertConfig, description="Checkpoints to Hugging Face folders")
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig, description="Measuring each model")
    compare: CompareConfig = Field(default_factory=CompareConfig, description="Setting the models against each other")
    runtime: RuntimeConfig = Field(default_factory=RuntimeConfig, description="How stages are executed; changes no result")

    @field_validator("pipeline")
    @classmethod
    def _names_can_be_used(cls, pipeline: Entries) -> Entries:
        for name in pipeline:
            if problem := name_problem(name):
                raise ValueError(f"an entry is called '{name}'; {problem}")
        return pipeline

    def section(self, stage: str) -> dict[str, Any]:
        """JSON-ready fields of the section of registered stage `stage`; empty for stages that have none."""
        settings = getattr(self, SECTIONS.get(stage, stage), None)
        return settings.model_dump(mode="json") if isinstance(settings, Settings) else {}


# The sections that are not called as their stage is.
SECTIONS = {"base_model": "model", "prepare_data": "data"}
