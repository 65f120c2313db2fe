"""Stages that reserve GPUs, on a real Ray that counts some: they queue, say what they wait for, and are refused what can never be."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_processing.errors import ConfigError
from rlhf_core.cluster.machine_gpus import FOLDER_VARIABLE
from tasks.runtime.contract.config import RuntimeConfig, ShipCode
from tasks.runtime.contract.home import Home
from tasks.runtime.contract.request import StageOutcome, StageRequest
from tasks.runtime.execution.ray_jobs import RayJobsExecutor
from tasks.runtime.execution.start import Runtime, run_stage
from tasks.runtime.keys.closure import Code
from tasks.runtime.keys.snapshot import take_snapshot
from tests.runtime.conftest import Heard
from tests.runtime.gpu_stages import HoldConfig
from tests.runtime.ray_head import RayHead, end_raylet, running_head

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def head_with_3_gpus() -> Iterator[RayHead]:
    with running_head(gpus=3, cpus=4) as head:
        yield head


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


@asynccontextmanager
async def _all_held(log: Path, runtime: Runtime) -> AsyncIterator[None]:
    """Inside, a stage holds all three GPUs."""
    holder = asyncio.create_task(run_stage(_hold(log, gpus=3, hold_s=600.0), runtime))
    began = log.with_name(f"{log.name}.began")
    while not began.exists():
        await asyncio.sleep(0.1)
        assert not holder.done()
    try:
        yield
    finally:
        holder.cancel()
        await asyncio.gather(holder, return_exceptions=True)


def test_a_limit_on_the_wait_is_kept_and_named(on_3_gpus: Runtime, log: Path, heard: Heard) -> None:
    limited = replace(on_3_gpus, settings=on_3_gpus.settings.model_copy(update={"placement_timeout_s": 2.0}))

    async def beside() -> None:
        async with _all_held(log, on_3_gpus):
            await run_stage(_hold(log, label="waits"), limited, heard)

    with pytest.raises(ConfigError, match=r"not free within 2 s \(runtime\.placement_timeout_s\).*free now 3 CPUs and 0 GPUs"):
        asyncio.run(beside())
    assert _waits(heard)[0] == "waiting for 1 GPU, 0 free"


def test_a_wait_that_is_cancelled_ends_soon_and_leaves_no_claim(on_3_gpus: Runtime, log: Path, heard: Heard) -> None:
    async def cancel_the_second() -> None:
        async with _all_held(log, on_3_gpus):
            waiting = asyncio.create_task(run_stage(_hold(log, gpus=3, label="waits"), on_3_gpus, heard))
            while not _waits(heard):
                await asyncio.sleep(0.1)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting

    asyncio.run(cancel_the_second())
    assert heard.folder is not None
    assert json.loads((heard.folder / "error.json").read_text())["exit_code"] == 14  # it was not killed
    asyncio.run(run_stage(_hold(log, gpus=3, label="after", hold_s=0.0), on_3_gpus))  # room for all three again


def test_a_process_that_only_waits_takes_no_cpu_from_those_that_work(
    head_with_3_gpus: RayHead, home: Home, settings: RuntimeConfig, log: Path
) -> None:
    """Four ranks take all four CPUs: with one in the hands of the stage's own process they would never have them."""
    shipped = settings.model_copy(update={"ship_code": ShipCode.always, "python": sys.executable})
    code = Code(take_snapshot(home.code, ["tests.runtime.gpu_stages"]))
    runtime = Runtime(home, RayJobsExecutor(head_with_3_gpus.address, shipped), shipped, code)
    asyncio.run(asyncio.wait_for(run_stage(_hold(log, ranks=4, gpus=0, hold_s=0.0), runtime), 120))
    assert len(_lines(log)) == 4


REPORT_MAXIMUM = """
import sys
import ray
from ray._raylet import GcsClient
from ray.core.generated.autoscaler_pb2 import ClusterConfig, NodeGroupConfig
group = NodeGroupConfig(name="gpu", resources={"CPU": 1, "GPU": 2}, max_count=int(sys.argv[2]))
GcsClient(address=sys.argv[1]).report_cluster_config(ClusterConfig(node_group_configs=[group]).SerializeToString())
"""


def _report_maximum(head: RayHead, nodes: int) -> None:
    """Say what an autoscaler says that may have so many nodes with two GPUs each."""
    subprocess.run([sys.executable, "-c", REPORT_MAXIMUM, head.gcs_address, str(nodes)], check=True, timeout=60)


def test_what_an_autoscaler_can_add_is_waited_for_and_more_is_refused(
    home: Home, settings: RuntimeConfig, log: Path, heard: Heard
) -> None:
    head = RayHead(gpus=0, cpus=1)
    try:
        head.wait_until_ready()
        runtime = Runtime(home, RayJobsExecutor(head.address), settings)
        _report_maximum(head, nodes=1)
        with pytest.raises(ConfigError, match=r"needs 1 x \(1 CPU and 3 GPUs\), and the cluster never has more than 2 GPUs"):
            asyncio.run(run_stage(_hold(log, gpus=3), runtime))

        async def until_it_has_grown() -> None:
            stage = asyncio.create_task(run_stage(_hold(log, gpus=2, hold_s=0.0), runtime, heard))
            while len(_waits(heard)) < 2:
                await asyncio.sleep(0.1)
                assert not stage.done()
            node = head.join("gpu", cpus=1, gpus=2)
            try:
                await stage
            finally:
                end_raylet(node)

        asyncio.run(until_it_has_grown())
        assert _waits(heard)[0] == "waiting for 2 GPUs, 0 free"
        assert _lines(log)[0]["given"] == ["0", "1"]
    finally:
        head.close()


def test_two_rays_on_one_machine_do_not_give_out_the_same_gpu(
    on_3_gpus: Runtime, head_with_3_gpus: RayHead, log: Path, heard: Heard
) -> None:
    head = RayHead(gpus=3, cpus=1, **{FOLDER_VARIABLE: str(head_with_3_gpus.folder)})
    try:
        head.wait_until_ready()
        limited = on_3_gpus.settings.model_copy(update={"placement_timeout_s": 2.0})
        other = Runtime(on_3_gpus.home, RayJobsExecutor(head.address), limited)

        async def beside() -> None:
            async with _all_held(log, on_3_gpus):
                await run_stage(_hold(log, label="waits"), other, heard)

        with pytest.raises(ConfigError, match=r"GPUs of this machine, which a run on another Ray holds .*not free within 2 s"):
            asyncio.run(beside())
        assert _waits(heard)[0].startswith("waiting for the GPUs of this machine, which a run on another Ray holds")
    finally:
        head.close()
