"""What it takes to run worker processes somewhere: submit, look, stop. Nothing here knows stages."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Protocol

from tasks.runtime.keys.closure import PROJECT_ROOT

# What a worker may inherit: settings of libraries, by name, so that no secret ever enters a job description. Which GPUs are seen is
# none of them: Ray says that to every process it gives one, and would hand it this machine's choice instead.
_INHERITED = (
    "DS_ACCELERATOR",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "NO_PROXY",
    "no_proxy",
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "TOKENIZERS_PARALLELISM",
    "TORCH_EXTENSIONS_DIR",
    "TRANSFORMERS_OFFLINE",
)


class JobStatus(str, Enum):
    """Where a job is. `unknown`: the executor has never heard of it, or has forgotten it."""

    pending = "pending"
    running = "running"
    succeeded = "succeeded"
    failed = "failed"
    stopped = "stopped"
    unknown = "unknown"

    @property
    def is_terminal(self) -> bool:
        """Whether the job has ended."""
        return self in (JobStatus.succeeded, JobStatus.failed, JobStatus.stopped)


@dataclass(frozen=True)
class JobState:
    """Status of a job; `exit_code` and `message` where the executor knows them (a killed process: 128 + signal)."""

    status: JobStatus
    exit_code: int | None = None
    message: str = ""


@dataclass(frozen=True)
class Job:
    """One attempt as an executor sees it: a unique id, the spec to run, the seconds it gets to stop in order, its code and variables.

    One that `reserves` has others do its work, in room of their own that it waits for.
    """

    id: str
    spec: Path
    stop_grace_s: float
    code: Path = PROJECT_ROOT
    environment: Mapping[str, str] = field(default_factory=dict)
    reserves: bool = False

    @property
    def folder(self) -> Path:
        """The attempt's folder."""
        return self.spec.parent


class ExecutorUnreachableError(RuntimeError):
    """The executor did not answer in time; the job may be running all the same."""


class DuplicateJobError(RuntimeError):
    """The executor has seen this id before, from another home or before a crash; take the next one."""


class Executor(Protocol):
    """Runs jobs as processes. Every call returns or raises `ExecutorUnreachableError` within seconds."""

    name: str

    def submit(self, job: Job) -> None:
        """Start the job. An id is used once; a second submission of it raises `DuplicateJobError`."""

    def state(self, job: Job) -> JobState:
        """Where the job is now."""

    def stop(self, job: Job) -> None:
        """Ask the job to end (SIGTERM, after its grace SIGKILL); returns at once."""


def worker_environment(job: Job) -> dict[str, str]:
    """Environment variables a worker gets: where our code is, this interpreter's tools, and library settings."""
    given = [str(Path(place).absolute()) for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
    places = [str(job.code), *given, str(Path.cwd())]
    environment = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    environment.setdefault("OMP_NUM_THREADS", "1")
    environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(places))
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return environment | dict(job.environment)


def worker_command(job: Job, python: str = sys.executable) -> list[str]:
    """The command line of the worker process. Its code is that of the job, also where it is started in a checkout."""
    return [python, "-P", "-m", "tasks.runtime.worker", str(job.spec)]
