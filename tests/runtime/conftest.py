"""Homes, runtimes and observers for the runtime's tests."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
if str(REPOSITORY) not in sys.path:  # stages are found by import path, also when pytest was not started with -m
    sys.path.insert(0, str(REPOSITORY))

from tasks.runtime.contract.config import RuntimeConfig  # noqa: E402
from tasks.runtime.contract.context import ArtifactRef  # noqa: E402
from tasks.runtime.contract.home import Home  # noqa: E402
from tasks.runtime.contract.request import SilentObserver, StageRequest  # noqa: E402
from tasks.runtime.execution.start import Runtime, run_stage  # noqa: E402
from tasks.runtime.execution.subprocess_executor import SubprocessExecutor  # noqa: E402
from tests.runtime.ray_head import RayHead, running_head  # noqa: E402
from tests.runtime.stages import CountConfig  # noqa: E402

if TYPE_CHECKING:
    from mlflow import MlflowClient


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.open(tmp_path / "home")


@pytest.fixture
def settings() -> RuntimeConfig:
    return RuntimeConfig(poll_interval_s=0.05, stop_grace_s=5.0, preemption_wait_s=0.05, min_free_disk_gib=0.0)


@pytest.fixture
def runtime(home: Home, settings: RuntimeConfig) -> Runtime:
    return Runtime(home, SubprocessExecutor(), settings)


@pytest.fixture
def count_request() -> Callable[..., StageRequest]:
    """A request for stage COUNT; keyword arguments are fields of its config, `run`, `node` and `force` of the request."""

    def make(*, run: str = "run", node: str = "count_node", force: bool = False, seed: int = 0, **config: Any) -> StageRequest:
        return StageRequest("tests.runtime.stages:COUNT", node, CountConfig(**config), run, force=force, seed=seed)

    return make


@pytest.fixture(scope="session")
def ray_head() -> Iterator[RayHead]:
    with running_head() as head:
        yield head


@dataclass
class Heard(SilentObserver):
    """Remembers everything it is told."""

    attempts: list[tuple[int, bool]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    folder: Path | None = None

    def on_attempt(self, attempt: int, folder: Path, attached: bool) -> None:
        self.attempts.append((attempt, attached))
        self.folder = folder

    def on_event(self, event: dict[str, Any]) -> None:
        self.events.append(event)

    def on_log(self, text: str) -> None:
        self.log += text.splitlines()

    def on_warning(self, message: str) -> None:
        self.warnings.append(message)


async def cancel_after(events: int, request: StageRequest, runtime: Runtime, heard: Heard) -> None:
    """Run the stage and cancel it when it has reported so many events; returns when it has ended."""
    task = asyncio.create_task(run_stage(request, runtime, heard))
    while len(heard.events) < events:
        await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One MLflow database for all tests: making one takes seconds."""
    from tasks.runtime.tracking.mlflow_sender import connect

    folder = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    connect(uri, folder)
    return uri


@pytest.fixture
def client(database: str) -> MlflowClient:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=database)


def model_ref(folder: Path, letter: str) -> ArtifactRef:
    """A model of a megabyte below `folder`, its key and hash made of `letter`."""
    (folder / letter).mkdir()
    (folder / letter / "model.safetensors").write_bytes(b"w" * 1_000_000)
    return ArtifactRef(kind="model", key=letter * 64, uri=(folder / letter).as_uri(), sha256=letter * 64, producer="run/convert")


@pytest.fixture
def data_ref() -> ArtifactRef:
    return ArtifactRef(kind="data", key="d" * 64, uri="file:///store/data/d", sha256="e" * 64, producer="run/prepare_data")
