"""Which step of a run has the best weights by a metric of the validation split; they are kept beside the run's checkpoints."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_processing.errors import ConfigError
from rlhf_core.engine.checkpoint import MANIFEST_NAME, latest_checkpoint, write_checkpoint
from rlhf_core.settings.training import TrainingConfig

_FOLDER = "best"


@dataclass
class Best:
    """The best step so far: its number, its metrics, and how many evaluations were no better since. Nothing without `keep_best`.

    Its weights are kept in the `resume` folder, as `write` of `see` writes them: `kept_weights` finds them.
    """

    config: TrainingConfig
    resume: Path
    step: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    worse: int = 0

    @property
    def is_over(self) -> bool:
        """Whether there was nothing better for so long that training ends."""
        return self.config.patience is not None and self.worse >= self.config.patience

    @property
    def why_over(self) -> str:
        """The line for people when it is."""
        name, patience = self.config.keep_best, self.config.patience
        return f"{name} was no better than at step {self.step} in {patience} evaluations in a row"

    def see(self, step: int, metrics: Mapping[str, float], write: Callable[[Path], None]) -> None:
        """An evaluation: if it is the best, `write` keeps its weights in a folder. The same on every rank; a collective."""
        name = self.config.keep_best
        if name is None:
            return
        if name not in metrics:
            measured = ", ".join(metrics) or "none, as there are no validation rows"
            raise ConfigError(f"keep_best='{name}' is not measured; measured are {measured}: name one of them, or leave it out")
        # Only losses are the better for being small.
        sign = -1 if "loss" in name else 1
        if self.metrics and sign * (metrics[name] - self.metrics[name]) <= 0:
            self.worse += 1
            return
        self.step, self.metrics, self.worse = step, dict(metrics), 0
        write_checkpoint(self.resume / _FOLDER / f"step_{step:08d}", write, {"step": step})

    def state(self) -> dict[str, Any]:
        """For `restore`."""
        return {"step": self.step, "metrics": self.metrics, "worse": self.worse}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint's. What was better after it is found again."""
        self.step, self.metrics, self.worse = state["step"], dict(state["metrics"]), state["worse"]


def kept_weights(resume: Path) -> Path | None:
    """The folder with the best step's weights, None where none were kept; the newest, as each was better than the one before."""
    return latest_checkpoint(resume / _FOLDER)


def take_kept(folder: Path, output: Path) -> None:
    """Make the weights of `kept_weights` the artifact."""
    shutil.copytree(folder, output, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST_NAME))
