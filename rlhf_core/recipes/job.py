"""What a training recipe is given: settings, folders, a seed and a place to report. Nothing here computes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from rlhf_core.events import EventLog
from rlhf_core.settings.training import TrainingConfig

# Covariant: what trains under some settings also does under more special ones.
ConfigT_co = TypeVar("ConfigT_co", bound=TrainingConfig, covariant=True)


@dataclass(frozen=True)
class TrainingJob(Generic[ConfigT_co]):
    """One training run, the same on every rank; it holds only paths and settings, so it can be sent to any process.

    `model` is a Hugging Face folder and `data` a prepared data folder, both read-only; `output` becomes the checkpoint
    artifact; `resume` outlives attempts and holds checkpoints, caches and, after a divergence, `bad_batch.json`.
    `model_sha256` tells the model's files apart from others; without it whoever needs to tell reads them. `teacher` is the Hugging Face
    folder that is learnt from, where there is one.
    """

    config: ConfigT_co
    model: Path
    data: Path
    output: Path
    resume: Path
    seed: int
    events: EventLog
    trust_remote_code: bool = False
    model_sha256: str | None = None
    teacher: Path | None = None
