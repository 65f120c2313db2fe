"""A stage whose result shows what was lost: numbers that depend on every step, in order, a checkpoint after each."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
from pydantic import Field

from data_processing.errors import PreemptedError
from data_processing.settings import Settings, operational
from tasks.runtime.contract.context import Input, Stage, StageContext

_SIZE = 4096


class TrainConfig(Settings):
    """How long it takes."""

    steps: int = Field(12, ge=1, description="Steps")
    step_s: float = operational(0.5, "Seconds a step", ge=0)
    actor: bool = operational(False, "Work in a Ray actor")
    opened_by: Path | None = operational(None, "File that the last step waits for")


def train(context: StageContext[TrainConfig]) -> None:
    """Go on from the checkpoint; SIGTERM ends it after the step, saved."""
    if context.config.actor:
        from rlhf_core.cluster.launch import launch
        from rlhf_core.cluster.resources import Bundle, Resources

        launch(_steps, context, resources=Resources((Bundle(cpus=0.1),)), threads=1)
    else:
        _steps(context)


def _steps(context: StageContext[TrainConfig]) -> None:
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    place = context.resume / "weights.npy"
    weights = np.load(place) if place.is_file() else np.zeros(_SIZE + 1)
    for step in range(int(weights[-1]), context.config.steps):
        time.sleep(context.config.step_s)
        while step == context.config.steps - 1 and not _is_open(context.config.opened_by) and not asked:
            time.sleep(0.05)
        weights[:-1] = 0.9 * weights[:-1] + np.random.default_rng(step).standard_normal(_SIZE)
        weights[-1] = step + 1
        _save(place, weights)
        context.events.progress(step + 1, context.config.steps, "trained")
        if asked:
            raise PreemptedError(f"asked to stop, saved at {step + 1}")
    np.save(context.output / "weights.npy", weights)


def _is_open(opened_by: Path | None) -> bool:
    return opened_by is None or opened_by.is_file()


def _save(place: Path, weights: np.ndarray) -> None:
    part = place.with_name(f"part{os.getpid()}.npy")
    np.save(part, weights)
    part.replace(place)


class ReadConfig(Settings):
    """Nothing to choose."""


def read(context: StageContext[ReadConfig]) -> None:
    """The sum of what was trained."""
    (context.output / "sum.txt").write_text(repr(float(np.load(context.inputs["trained"] / "weights.npy").sum())))


TRAIN = Stage(name="train", kind="numbers", config=TrainConfig, run=train)
READ = Stage(name="read", kind="text", config=ReadConfig, inputs={"trained": Input("numbers", default="trained")}, run=read)
