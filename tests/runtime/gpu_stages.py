"""A stage that does nothing but hold what it reserves, and says when it did and what its ranks saw."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from pydantic import Field

from data_processing.settings import Settings, operational
from rlhf_core.cluster.launch import launch
from rlhf_core.cluster.resources import Resources, ranks
from rlhf_core.recipes.stop import stop_file_on_sigterm
from tasks.runtime.contract.context import Input, Stage, StageContext


class HoldConfig(Settings):
    """How much is held, and for how long."""

    ranks: int = Field(1, ge=1, description="Processes")
    gpus: float = Field(1.0, ge=0, description="GPUs of each")
    label: str = Field("", description="Tells pieces of work apart that are otherwise the same")
    hold_s: float = operational(1.0, "Seconds that every process stays", ge=0)
    log: str = operational("", "File that gets a line for every process, when it ends")
    stall_after_s: float = operational(120.0, "Seconds without an event after which the stage counts as hung", gt=0)


def _hold(config: HoldConfig) -> None:
    """What every process does; its line says what Ray gave it, what its libraries would see, and when (unix seconds)."""
    import ray

    began = time.time()
    Path(f"{config.log}.began").touch()
    time.sleep(config.hold_s)
    given = sorted(str(number) for number in ray.get_gpu_ids())
    line = {"given": given, "visible": os.environ.get("CUDA_VISIBLE_DEVICES"), "began": began, "ended": time.time()}
    with Path(config.log).open("a") as log:
        log.write(json.dumps(line) + "\n")


def _resources(config: HoldConfig) -> Resources:
    return ranks(config.ranks, gpus=config.gpus, settings="ranks and gpus")


def hold(context: StageContext[HoldConfig]) -> None:
    """Reserve, hold, write down."""
    with stop_file_on_sigterm(context.resume):
        launch(_hold, context.config, resources=_resources(context.config), threads=1, waiting=context.waiting)
    (context.output / "held").touch()


HOLD = Stage(
    name="hold",
    kind="held",
    config=HoldConfig,
    inputs={"first": Input("held", optional=True), "second": Input("held", optional=True)},
    run=hold,
    resources=_resources,
)
