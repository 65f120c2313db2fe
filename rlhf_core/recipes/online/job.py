"""What an online run is given beside what every training run is given."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from rlhf_core.cluster.resources import Waiting
from rlhf_core.recipes.job import TrainingJob
from rlhf_core.settings.online import OnlineConfig


@dataclass(frozen=True)
class OnlineJob(TrainingJob[OnlineConfig]):
    """`reward_model` is the Hugging Face folder of a trained scorer: a source of reward, and where the critic starts from.

    `teacher` is that of a language model, for methods with one.

    `waiting` says how it waits for room for its actors.
    """

    reward_model: Path | None = None
    teacher: Path | None = None
    waiting: Waiting = field(default_factory=Waiting)
