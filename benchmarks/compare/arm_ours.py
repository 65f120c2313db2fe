"""Our arm: the recipes as the product runs them, reporting each step through their own event log.

python -m compare.arm_ours spec.json      (started by compare/duel.py)
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compare.process_tree import resident_mib
from compare.turns import Turns
from compare.workload import Work
from rlhf_core.events import EventLog


@dataclass(frozen=True)
class TurnTakingLog(EventLog):
    """The event log of a run that waits for its turn after every step."""

    turns: Turns

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """The recipes call this once a training step, after it; what is measured on validation rows is named eval_*."""
        super().metrics(step, values)
        if step:  # what is known before the first step is no step
            self.turns.report(step, loss=values.get("loss"), metrics=dict(values))


def main() -> None:
    """Run the recipe that the spec names."""
    spec = json.loads(Path(sys.argv[1]).read_text())
    run = _online if spec["recipe"] == "online" else _offline
    run(spec, Work(Path(spec["work"])), Turns(Path(spec["turns"]), spec["runner_pid"]))


def _offline(spec: dict[str, Any], work: Work, turns: Turns) -> None:
    import deepspeed  # noqa: F401 -- so that the resident size noted here has every library in it

    from rlhf_core.cluster.launch import launch
    from rlhf_core.cluster.resources import ranks
    from rlhf_core.recipes.distill import train_distill
    from rlhf_core.recipes.job import TrainingJob
    from rlhf_core.recipes.preference import train_preference
    from rlhf_core.recipes.reward_model import train_reward_model
    from rlhf_core.recipes.sft import train_sft
    from rlhf_core.settings.preference import PreferenceConfig
    from rlhf_core.settings.supervised import DistillConfig, RewardModelConfig, SftConfig

    train, model = {
        "sft": (train_sft, SftConfig),
        "preference": (train_preference, PreferenceConfig),
        "reward_model": (train_reward_model, RewardModelConfig),
        "distill": (train_distill, DistillConfig),
    }[spec["recipe"]]
    config = model.model_validate(spec["settings"])
    job: TrainingJob[Any] = TrainingJob(config, **_places(spec, work, turns))
    _note_libraries(turns)
    engine = config.engine
    launch(train, job, resources=ranks(engine.world_size, threads=engine.threads_per_rank), threads=engine.threads_per_rank)


def _online(spec: dict[str, Any], work: Work, turns: Turns) -> None:
    from rlhf_core.recipes.online.job import OnlineJob
    from rlhf_core.recipes.online.run import run_online
    from rlhf_core.settings.online import OnlineConfig

    _note_libraries(turns)
    run_online(OnlineJob(OnlineConfig.model_validate(spec["settings"]), **_places(spec, work, turns)))


def _places(spec: dict[str, Any], work: Work, turns: Turns) -> dict[str, Any]:
    output, resume = turns.folder / "output", turns.folder / "resume"
    output.mkdir()
    resume.mkdir()
    events = TurnTakingLog(turns.folder / "events.jsonl", turns)
    return {
        "model": work.model,
        "data": work.data,
        "teacher": work.teacher,
        "output": output,
        "resume": resume,
        "seed": spec["seed"],
        "events": events,
    }


def _note_libraries(turns: Turns) -> None:
    (turns.folder / "libraries_mib").write_text(str(resident_mib()))


if __name__ == "__main__":
    main()
