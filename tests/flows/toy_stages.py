"""Stages that take no time, fail on purpose, wait to be cancelled, or hold a GPU: the real runtime with nothing to compute."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from data_processing.errors import DivergedError
from rlhf_core.cluster.placement import reserved
from rlhf_core.cluster.resources import Resources, ranks
from rlhf_core.settings.models import BaseModelConfig
from tasks.runtime.contract.context import Input, Stage, StageContext

HOLD_S = 12.0


def _write(context: StageContext[BaseModelConfig]) -> None:
    context.events.progress(1, 2, "half way")
    made_from = {name: (folder / "text").read_text() for name, folder in sorted(context.inputs.items())}
    (context.output / "text").write_text(f"{context.seed}{made_from}")
    context.events.metrics(1, {"loss": 0.5})
    context.events.progress(2, 2, "all the way")


def _diverge(context: StageContext[BaseModelConfig]) -> None:
    raise DivergedError("loss is nan at step 3; lower optimizer.learning_rate")


def _wait(context: StageContext[BaseModelConfig]) -> None:
    context.events.progress(0, 1, "waiting")
    time.sleep(300)


def _wait_for_key(context: StageContext[BaseModelConfig]) -> None:
    context.events.progress(0, 1, "waiting")
    while not Path(os.environ["TOY_KEY"]).exists():
        time.sleep(0.1)
    _write(context)


def _one_gpu(config: BaseModelConfig) -> Resources:
    return ranks(1, gpus=1.0)


def _hold(context: StageContext[BaseModelConfig]) -> None:
    with reserved(_one_gpu(context.config), context.waiting):
        began = time.time()
        time.sleep(HOLD_S)
        held = {"began": began, "ended": time.time()}
    (context.output / "held.json").write_text(json.dumps(held))


_FIELDS = {
    "kind": "model",
    "config": BaseModelConfig,
    "inputs": {"first": Input("model", optional=True), "second": Input("model", optional=True)},
}
WRITES = Stage(name="writes", run=_write, **_FIELDS)
DIVERGES = Stage(name="diverges", run=_diverge, **_FIELDS)
WAITS = Stage(name="waits", run=_wait, **_FIELDS)
WAITS_FOR_KEY = Stage(name="waits_for_key", run=_wait_for_key, **_FIELDS)
HOLDS = Stage(name="holds", run=_hold, resources=_one_gpu, **_FIELDS)
HOLDS_TWO = Stage(name="holds_two", run=_hold, resources=lambda config: ranks(1, gpus=2.0), **_FIELDS)
