"""What a `checkpoint` artifact holds beside the trained weights, so that it can be converted without knowing who trained it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from data_processing.errors import ConfigError
from data_processing.settings import Settings
from rlhf_core.models.tokenizer_files import copy_tokenizer
from rlhf_core.precision import Dtype
from rlhf_core.settings.training import LoraSettings

POLICY_NAME = "policy.json"
TRAINER_STATE_NAME = "trainer_state.json"
WEIGHTS_NAME = "zero"
LATEST_NAME = "latest"  # of a DeepSpeed checkpoint: the file that says which step is the latest


class PolicyDescription(Settings):
    """What the trained weights belong to."""

    head: Literal["lm", "score"] = Field(description="Causal LM, or scorer with one output")
    lora: LoraSettings | None = Field(description="Adapters that were trained; null: all weights were")
    dtype: Dtype = Field(description="Precision it was trained in")
    architecture: str = Field(description="Class of the model")


def is_training_checkpoint(folder: Path) -> bool:
    """Whether a folder is what a training stage wrote, or a DeepSpeed checkpoint of another trainer."""
    return (folder / POLICY_NAME).is_file() or (folder / LATEST_NAME).is_file()


def write_artifact(output: Path, module: Any, dtype: Dtype, progress: dict[str, Any]) -> None:
    """Describe `module` (its model is `.hf`) and how far it was trained in `output`, and copy its tokenizer there."""
    (output / POLICY_NAME).write_text(describe(module, dtype).model_dump_json(indent=1), encoding="utf-8")
    (output / TRAINER_STATE_NAME).write_text(json.dumps(progress, indent=1), encoding="utf-8")
    copy_tokenizer(Path(module.hf.name_or_path), output)


def describe(module: Any, dtype: Dtype) -> PolicyDescription:
    """What the weights of `module` belong to; its model is `.hf`."""
    from rlhf_core.models.lora import lora_settings
    from rlhf_core.models.modules import ScoreModule

    return PolicyDescription(
        head="score" if isinstance(module, ScoreModule) else "lm",
        lora=lora_settings(module.hf),
        dtype=dtype,
        architecture=type(module.hf).__name__,
    )


def read_policy(checkpoint: Path) -> PolicyDescription:
    """The description in a `checkpoint` artifact; raises `ConfigError` where there is none."""
    try:
        return PolicyDescription.model_validate_json((checkpoint / POLICY_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{checkpoint} is no training checkpoint ({POLICY_NAME}: {error}): give what a training stage wrote"
        ) from error
