"""Small stages for the runtime's tests; each shows one behaviour of a real one."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from data_processing.errors import AlignflowError, ConfigError, DataError, DivergedError, PreemptedError
from data_processing.settings import Settings, operational
from tasks.runtime.contract.context import Input, Stage, StageContext

_ERRORS: dict[int, type[AlignflowError]] = {10: ConfigError, 11: DataError, 12: DivergedError, 14: PreemptedError}


class CountConfig(Settings):
    """How far the stage counts, and what goes wrong on the way."""

    to: int = Field(3, ge=1, description="Last number")
    label: str = Field("plain", description="Text in the artifact")
    step_s: float = operational(0.0, "Seconds a number", ge=0)
    fail_code: int = operational(0, "Exit code to fail with, at the first attempt only unless fail_always")
    fail_always: bool = operational(False, "Fail at every attempt")
    kill_at: int = operational(0, "SIGKILL itself at this number of the first attempt; 0: never")
    hang_at: int = operational(0, "Stop reporting at this number of the first attempt; 0: never")
    stall_after_s: float = operational(60.0, "Seconds without an event after which the stage counts as hung", gt=0)
    started_log: str = operational("", "File that gets one line for every execution")


def count(context: StageContext[CountConfig]) -> None:
    """Count with a checkpoint a number; the artifact tells every number and which attempt counted it."""
    config = context.config
    _note_execution(config)
    checkpoint = context.resume / "counted.json"
    counted: list[list[int]] = json.loads(checkpoint.read_text()) if checkpoint.is_file() else []
    stop_requested: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stop_requested.append(number))
    first = context.attempt == 1
    for number in range(len(counted) + 1, config.to + 1):
        time.sleep(config.step_s)
        if config.fail_code and (first or config.fail_always):
            _fail(config.fail_code)
        if first and number == config.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if first and number == config.hang_at:
            time.sleep(3600)
        counted.append([number, context.attempt])
        checkpoint.write_text(json.dumps(counted))
        context.events.metrics(number, {"count": float(number), "square": float(number * number)})
        context.events.progress(number, config.to, f"counted {number}")
        if stop_requested:
            raise PreemptedError(f"asked to stop, saved at {number}")
    (context.output / "counted.json").write_text(json.dumps(counted))
    (context.output / "label.txt").write_text(config.label)
    context.events.summary({"last": config.to})


def _note_execution(config: CountConfig) -> None:
    if config.started_log:
        with Path(config.started_log).open("a") as log:
            log.write(f"{os.getpid()}\n")


def _fail(code: int) -> None:
    if code == 13:
        raise MemoryError("no room")
    if code in _ERRORS:
        raise _ERRORS[code](f"asked to fail with {code}")
    sys.exit(code)


class JoinConfig(Settings):
    """Nothing to choose."""

    separator: str = Field("-", description="Between the parts")


def join(context: StageContext[JoinConfig]) -> None:
    """Join the label of its input with itself."""
    label = (context.inputs["counted"] / "label.txt").read_text()
    (context.output / "joined.txt").write_text(context.config.separator.join([label, label]))


def write_big(context: StageContext[JoinConfig]) -> None:
    """A few megabytes."""
    np.save(context.output / "big.npy", np.zeros(500_000))


class SitesConfig(Settings):
    """How many ranks say where they are, beside the stage's own process."""

    ranks: int = Field(0, ge=0, description="Actors")


def sites(context: StageContext[SitesConfig]) -> None:
    """Interpreter, module file and variable SAID_BY of this process and of each rank."""
    from rlhf_core.cluster.launch import launch
    from rlhf_core.cluster.resources import Bundle, Resources

    place = context.resume / "sites"
    place.mkdir()
    _say_site(place, "driver")
    if ranks := context.config.ranks:
        launch(_site_of_rank, place, resources=Resources((Bundle(1.0),) * ranks), threads=1)
    said = {path.name: json.loads(path.read_text()) for path in sorted(place.iterdir())}
    (context.output / "sites.json").write_text(json.dumps(said))


def _site_of_rank(place: Path) -> None:
    _say_site(place, f"rank {os.environ['RANK']}")


def _say_site(place: Path, name: str) -> None:
    import rlhf_core

    said = [sys.executable, rlhf_core.__file__, os.environ.get("SAID_BY", "")]
    (place / name).write_text(json.dumps(said))


def _fingerprint(config: CountConfig) -> Any:
    return {"label_length": len(config.label)}


COUNT = Stage(name="count", kind="numbers", config=CountConfig, run=count, fingerprint=_fingerprint)
JOIN = Stage(
    name="join",
    kind="text",
    config=JoinConfig,
    inputs={"counted": Input("numbers"), "extra": Input("numbers", optional=True)},
    run=join,
    libraries=("pydantic",),
)
SITES = Stage(name="sites", kind="text", config=SitesConfig, run=sites)
BIG = Stage(name="big", kind="blob", config=JoinConfig, run=write_big, libraries=("numpy",))
