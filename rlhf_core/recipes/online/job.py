"""What an online run is given beside what every training run is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rlhf_core.cluster.resources import Waiting
from rlhf_core.recipes.job import TrainingJob
from rlhf_core.settings.online import OnlineConfig


@dataclass(frozen=True)
class OnlineJob(TrainingJob[OnlineConfig]):
    """`scorers` are Hugging Face folders of trained reward models by the names of the inputs: sources of reward. Services
    are asked on this machine and at `allowed_hosts`.

    `teacher` is that of a language model, for methods with one; `waiting` says how it waits for room for its actors.
    """

    scorers: Mapping[str, Path] = field(default_factory=dict)
    allowed_hosts: tuple[str, ...] = ()
    teacher: Path | None = None
    waiting: Waiting = field(default_factory=Waiting)

    @property
    def reward_model(self) -> Path | None:
        """The scorer of the input of that name, where there is one: the critic starts from it."""
        return self.scorers.get("reward_model")
