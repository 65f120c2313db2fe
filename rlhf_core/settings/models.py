"""Settings of the stages that make models of models: the one to start from, conversions, merging."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from data_processing.settings import Settings, local_path
from rlhf_core.precision import Dtype

TemplateArgument = bool | int | float | str | None


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
