"""Which step of a run has the best weights by a metric of the validation split; they are kept beside the run's checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_processing.errors import ConfigError
from rlhf_core.engine.checkpoint import latest_checkpoint, write_checkpoint
from rlhf_core.engine.engine import TrainingEngine
from rlhf_core.recipes.job import TrainingJob
from rlhf_core.settings.training import TableConfig

_FOLDER = "best"


@dataclass
class Best:
    """The best step so far: its number, its metrics, and how many evaluations were no better since. Nothing without `keep_best`.

    Its weights are kept as `save_final` writes them: `kept_weights` finds them.
    """

    job: TrainingJob[TableConfig]
    engine: TrainingEngine
    step: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    worse: int = 0

    @property
    def is_over(self) -> bool:
        """Whether there was nothing better for so long that training ends."""
        patience = self.job.config.patience
        return patience is not None and self.worse >= patience

    def see(self, step: int, metrics: Mapping[str, float]) -> None:
        """An evaluation: if it is the best, the weights as they are now are kept. The same on every rank; a collective."""
        name = self.job.config.keep_best
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
        write_checkpoint(self.job.resume / _FOLDER / f"step_{step:08d}", self.engine.save_final, {"step": step})

    def state(self) -> dict[str, Any]:
        """For `restore`."""
        return {"step": self.step, "metrics": self.metrics, "worse": self.worse}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint's. What was better after it is found again."""
        self.step, self.metrics, self.worse = state["step"], dict(state["metrics"]), state["worse"]


def kept_weights(resume: Path) -> Path | None:
    """The folder with the best step's weights, None where none were kept; the newest, as each was better than the one before."""
    return latest_checkpoint(resume / _FOLDER)
