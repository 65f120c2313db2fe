"""What an online run is given beside what every training run is given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rlhf_core.config import OnlineConfig
from rlhf_core.recipes.job import TrainingJob


@dataclass(frozen=True)
class OnlineJob(TrainingJob[OnlineConfig]):
    """`reward_model` is the Hugging Face folder of a trained scorer: a source of reward, and where the critic starts from."""

    reward_model: Path | None = None
