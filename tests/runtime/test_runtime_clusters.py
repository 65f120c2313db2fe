"""A cluster of other machines: the code travels, and what runs it is the interpreter and the folder that are there."""

from __future__ import annotations

import asyncio
import json
import sysconfig
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_processing.errors import ConfigError
from evaluation.config import EvaluateConfig
from flows.graph.build import settled
from rlhf_core.precision import native_dtype
from tasks.runtime.contract.config import RuntimeConfig, ShipCode
from tasks.runtime.contract.failures import StageFailedError
from tasks.runtime.contract.home import Home
from tasks.runtime.contract.request import StageOutcome, StageRequest
from tasks.runtime.execution.cluster_facts import facts_of
from tasks.runtime.execution.ray_jobs import RayJobsExecutor
from tasks.runtime.execution.start import Runtime, run_stage
from tasks.runtime.keys.closure import Code
from tasks.runtime.keys.snapshot import take_snapshot
from tests.runtime.conftest import Heard
from tests.runtime.ray_head import RayHead, end_raylet, running_head
from tests.runtime.stages import SitesConfig

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayHead]:
    """A head that may run nothing, and one other machine."""
    with running_head(cpus=0) as head:
        other = head.join("other", cpus=3)
        try:
            yield head
        finally:
            end_raylet(other)


@pytest.fixture
def python_there(tmp_path: Path) -> str:
    """Another environment: its own interpreter with the libraries of this one, and without alignflow."""
    venv.create(tmp_path / "there", with_pip=False)
    [site] = (tmp_path / "there" / "lib").glob("*/site-packages")
    old_processor = "import os; os.environ['ONEDNN_MAX_CPU_ISA'] = 'SSE41'"
    (site / "libraries.pth").write_text(f"{sysconfig.get_path('purelib')}\n{old_processor}\n")
    other_version = site / "pydantic-9.9.9.dist-info"
    other_version.mkdir()
    (other_version / "METADATA").write_text("Metadata-Version: 2.1\nName: pydantic\nVersion: 9.9.9\n")
    return str(tmp_path / "there" / "bin" / "python")


def _settings(settings: RuntimeConfig, python: str, **more: object) -> RuntimeConfig:
    there = {"ship_code": ShipCode.always, "python": python, "driver_resources": {"CPU": 0.5, "other": 0.1}}
    return settings.model_copy(update={**there, **more})


def _sites(home: Home, head: RayHead, settings: RuntimeConfig) -> tuple[StageOutcome, dict[str, list[str]]]:
    request = StageRequest("tests.runtime.stages:SITES", "sites", SitesConfig(ranks=2), "run")
    code = Code(take_snapshot(home.code, ["tests.runtime.stages"]))
    outcome = asyncio.run(run_stage(request, Runtime(home, RayJobsExecutor(head.address, settings), settings, code)))
    sites: dict[str, list[str]] = json.loads((home.store / outcome.ref.kind / outcome.ref.key / "sites.json").read_text())
    return outcome, sites


def test_code_travels_to_the_driver_and_to_its_actors(
    cluster: RayHead, home: Home, settings: RuntimeConfig, python_there: str
) -> None:
    _, sites = _sites(home, cluster, _settings(settings, python_there, env={"SAID_BY": "settings"}))
    assert len(sites["driver"]) == len(sites["rank 0"]) == len(sites["rank 1"])
    for executable, module, said in sites.values():
        assert executable == python_there
        assert "working_dir_files" in module, "the code that Ray unpacked, neither a checkout nor the home"
        assert said == "settings"


def test_keys_name_the_libraries_and_the_precision_of_the_cluster(
    cluster: RayHead, home: Home, settings: RuntimeConfig, python_there: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = RayJobsExecutor(cluster.address, _settings(settings, python_there))
    facts = facts_of(executor, home)
    code = Code(libraries=facts.libraries)
    assert code.versions(["pydantic", "ray", "no-such"]) == {
        **Code().versions(["ray", "no-such"]),
        "pydantic": "9.9.9",
    }
    assert (facts.native_dtype(False), facts.native_dtype(True)) == ("fp32", native_dtype(True))
    assert settled(EvaluateConfig(), facts.native_dtype) == EvaluateConfig(dtype="fp32")
    assert settled(EvaluateConfig(), lambda on_gpu: "bf16") == EvaluateConfig(dtype="bf16")
    monkeypatch.setattr(executor, "run_python", None)
    assert facts_of(executor, home) == facts, "asked once while the cluster is up"
    with pytest.raises(StageFailedError, match=r"/no/python' \(runtime\.python\) does not run"):
        facts_of(RayJobsExecutor(cluster.address, _settings(settings, "/no/python")), home)


def test_a_secret_that_is_not_on_the_machine_is_named(
    cluster: RayHead, home: Home, settings: RuntimeConfig, python_there: str, heard: Heard
) -> None:
    there = _settings(settings, python_there, secrets=["HUB_TOKEN_OF_THE_TEAM"])
    code = Code(take_snapshot(home.code, ["tests.runtime.stages"]))
    request = StageRequest("tests.runtime.stages:SITES", "sites", SitesConfig(ranks=0), "run")
    with pytest.raises(ConfigError, match=r"runtime\.secrets: HUB_TOKEN_OF_THE_TEAM not set on"):
        asyncio.run(run_stage(request, Runtime(home, RayJobsExecutor(cluster.address, there), there, code), heard))


def test_a_cluster_on_this_machine_reads_the_code_where_it_is(ray_head: RayHead) -> None:
    assert not RayJobsExecutor(ray_head.address).ships_code()
