"""Stages that reserve GPUs, on a real Ray that counts some: they queue, say what they wait for, and are refused what can never be."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_processing.errors import ConfigError
from tasks.runtime.contract.config import RuntimeConfig
from tasks.runtime.contract.home import Home
from tasks.runtime.contract.request import StageOutcome, StageRequest
from tasks.runtime.execution.ray_jobs import RayJobsExecutor
from tasks.runtime.execution.start import Runtime, run_stage
from tests.runtime.conftest import Heard
from tests.runtime.gpu_stages import HoldConfig
from tests.runtime.ray_head import RayHead

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def head_with_3_gpus() -> Iterator[RayHead]:
    head = RayHead(gpus=3, cpus=4)
    try:
        head.wait_until_ready()
        yield head
    finally:
        head.close()


@pytest.fixture
def on_3_gpus(home: Home, settings: RuntimeConfig, head_with_3_gpus: RayHead) -> Runtime:
    return Runtime(home, RayJobsExecutor(head_with_3_gpus.address), settings)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "held.jsonl"


def _hold(log: Path, **config: Any) -> StageRequest:
    return StageRequest("tests.runtime.gpu_stages:HOLD", "hold", HoldConfig(log=str(log), **config), "run")


def _lines(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


async def _until_held(log: Path) -> None:
    began = log.with_name(f"{log.name}.began")
    while not began.exists():
        await asyncio.sleep(0.1)


def _waits(heard: Heard) -> list[str]:
    return [str(event["message"]) for event in heard.events if event["type"] == "waiting"]


def test_every_rank_sees_the_gpu_that_ray_gave_it_and_no_other(
    on_3_gpus: Runtime, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")  # of the machine that asks, which is another one
    asyncio.run(run_stage(_hold(log, ranks=2), on_3_gpus))
    first, second = _lines(log)
    assert (first["visible"], second["visible"]) == (*first["given"], *second["given"])
    assert first["given"] != second["given"]
    assert {first["visible"], second["visible"]} < {"0", "1", "2"}


def test_two_gangs_of_two_on_three_gpus_take_turns(on_3_gpus: Runtime, log: Path) -> None:
    """Each would wait for ever if it took the one that is free while the other holds two."""
    heard = [Heard(), Heard()]

    async def both() -> list[StageOutcome]:
        stages = [_hold(log, ranks=2, hold_s=4.0, label=label) for label in ("one", "other")]
        return await asyncio.gather(*(run_stage(stage, on_3_gpus, ear) for stage, ear in zip(stages, heard, strict=True)))

    assert len(asyncio.run(both())) == 2
    *first, third, fourth = sorted(_lines(log), key=lambda line: line["began"])
    assert min(third["began"], fourth["began"]) >= max(line["ended"] for line in first)
    # Whoever waits holds nothing: of three GPUs two are held, and one is free.
    [waits] = [_waits(ear) for ear in heard if _waits(ear)]
    assert waits[0] == "waiting for 2 GPUs, 1 free"


def test_more_than_there_can_ever_be_is_an_error_at_once_and_final(on_3_gpus: Runtime, log: Path, heard: Heard) -> None:
    with pytest.raises(
        ConfigError, match=r"needs 4 x \(1 CPU and 1 GPU\), and the cluster never has more than 3 GPUs; lower ranks"
    ):
        asyncio.run(run_stage(_hold(log, ranks=4), on_3_gpus, heard))
    assert heard.attempts == [(1, False)]


def test_a_limit_on_the_wait_is_kept_and_named(on_3_gpus: Runtime, log: Path, heard: Heard) -> None:
    limited = replace(on_3_gpus, settings=on_3_gpus.settings.model_copy(update={"placement_timeout_s": 2.0}))

    async def beside() -> None:
        held = asyncio.create_task(run_stage(_hold(log, gpus=3, hold_s=10.0), on_3_gpus))
        await _until_held(log)
        with pytest.raises(
            ConfigError,
            match=r"not free within 2 s \(runtime\.placement_timeout_s\).*has 4 CPUs and 3 GPUs, free now 3 CPUs and 0 GPUs",
        ):
            await run_stage(_hold(log), limited, heard)
        await held

    asyncio.run(beside())
    assert _waits(heard)[0] == "waiting for 1 GPU, 0 free"


def test_a_wait_that_is_cancelled_ends_soon_and_leaves_no_claim(on_3_gpus: Runtime, log: Path, heard: Heard) -> None:
    undisturbed = Heard()

    async def cancel_the_second() -> float:
        held = asyncio.create_task(run_stage(_hold(log, gpus=3, hold_s=10.0), on_3_gpus, undisturbed))
        await _until_held(log)
        waiting = asyncio.create_task(run_stage(_hold(log, gpus=3, label="waits"), on_3_gpus, heard))
        while not _waits(heard):
            await asyncio.sleep(0.1)
        cancelled = time.monotonic()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        took_s = time.monotonic() - cancelled
        await held
        return took_s

    assert asyncio.run(cancel_the_second()) < 5
    assert heard.folder is not None
    assert json.loads((heard.folder / "error.json").read_text())["exit_code"] == 14
    assert undisturbed.warnings == []
    assert len(_lines(log)) == 1
    asyncio.run(run_stage(_hold(log, gpus=3, label="after", hold_s=0.0), on_3_gpus))  # room for all three again


def test_a_wait_is_longer_than_the_silence_that_a_stage_may_keep(on_3_gpus: Runtime, log: Path) -> None:
    async def one_after_the_other() -> list[StageOutcome]:
        first = asyncio.create_task(run_stage(_hold(log, gpus=3, hold_s=20.0), on_3_gpus))
        await _until_held(log)
        return [await run_stage(_hold(log, hold_s=0.0, stall_after_s=12.0), on_3_gpus), await first]

    second, _ = asyncio.run(one_after_the_other())
    assert second.attempt == 1
