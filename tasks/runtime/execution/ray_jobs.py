"""Jobs through the Ray Jobs API. A job outlives the flow process that submitted it, and is found again by its id."""

from __future__ import annotations

import json
import math
import shlex
import socket
from collections.abc import Callable
from typing import Any, TypeVar

import requests
from ray.dashboard.modules.job.common import JobStatus as RayStatus
from ray.exceptions import RayError
from ray.job_submission import JobSubmissionClient

from tasks.runtime.contract.config import RuntimeConfig, ShipCode
from tasks.runtime.execution.executor import (
    DuplicateJobError,
    ExecutorUnreachableError,
    Job,
    JobState,
    JobStatus,
    worker_command,
    worker_environment,
)

_CALL_LIMIT_S = 10.0
_STATUS = {
    RayStatus.PENDING: JobStatus.pending,
    RayStatus.RUNNING: JobStatus.running,
    RayStatus.SUCCEEDED: JobStatus.succeeded,
    RayStatus.FAILED: JobStatus.failed,
    RayStatus.STOPPED: JobStatus.stopped,
}
_MESSAGE_LIMIT = 2000
_CRUMB_BYTES = 1 << 20

AnswerT = TypeVar("AnswerT")


class _BoundedClient(JobSubmissionClient):  # type: ignore[misc]  # Ray is untyped
    """Ray's client, whose requests give up: without a time-out a dead GCS holds a caller for a minute."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        return super()._do_request(method, endpoint, timeout=_CALL_LIMIT_S, **options)


class RayJobsExecutor:
    """Submits to the Ray dashboard at `address` (`http://host:port`); the cluster must reach the home's files.

    A cluster that has other machines than this one is sent the code with each job, and runs it with its own interpreter.
    """

    name = "ray"

    def __init__(self, address: str, settings: RuntimeConfig | None = None) -> None:
        self._address = address
        self._settings = settings or RuntimeConfig()
        self._client: JobSubmissionClient | None = None
        self._ships: bool | None = None

    def submit(self, job: Job) -> None:
        """Start the worker as a Ray job. What its environment says can be read by anyone with access to the Jobs API."""
        grace = {"RAY_JOB_STOP_WAIT_TIME_S": str(math.ceil(job.stop_grace_s))}
        runtime_env: dict[str, Any]
        where: dict[str, Any] = {}
        if self.ships_code():
            where = self._place(job.reserves)
            runtime_env = {"working_dir": str(job.code), "py_executable": self._settings.python}
            runtime_env["env_vars"] = {"PYTHONUNBUFFERED": "1", **job.environment, **grace}
            command = worker_command(job, self._settings.python)
        else:
            command = worker_command(job)
            runtime_env = {"env_vars": worker_environment(job) | grace}
        # exec: the signal of a stop must reach the worker, not a shell in front of it
        entrypoint = f"exec {shlex.join(command)}"
        self._ask(lambda c: c.submit_job(entrypoint=entrypoint, submission_id=job.id, runtime_env=runtime_env, **where))

    def ships_code(self) -> bool:
        """Whether code travels with the jobs: as the settings say, or where the cluster has a machine other than this one."""
        if self._settings.ship_code is not ShipCode.auto:
            return self._settings.ship_code is ShipCode.always
        if self._ships is None:
            response = self._ask(lambda client: client._do_request("GET", "/nodes?view=summary"))
            nodes = response.json()["data"]["summary"] if response.status_code == requests.codes.ok else []
            self._ships = any(node["hostname"] != socket.gethostname() for node in nodes)
        return self._ships

    def state(self, job: Job) -> JobState:
        """As Ray sees it; `unknown` for an id it has never seen, also after the cluster was started anew."""
        response = self._ask(lambda client: client._do_request("GET", f"/api/jobs/{job.id}"))
        if response.status_code == requests.codes.not_found:
            return JobState(JobStatus.unknown)
        if response.status_code != requests.codes.ok:
            raise ExecutorUnreachableError(f"Ray at {self._address}: HTTP {response.status_code}: {response.text[:200]}")
        details = response.json()
        status = _STATUS[RayStatus(details["status"])]
        message = (details.get("message") or "")[-_MESSAGE_LIMIT:]
        code = details.get("driver_exit_code")
        code = 128 - code if code is not None and code < 0 else code
        return JobState(status, code, message if status is JobStatus.failed else "")

    def stop(self, job: Job) -> None:
        """SIGTERM to the driver, SIGKILL after the job's grace; its actors go with it."""
        self._ask(lambda client: client.stop_job(job.id))

    @property
    def python(self) -> str:
        """The interpreter of jobs that code is shipped to."""
        return self._settings.python

    def session(self) -> str:
        """What tells this cluster from all others, also from the one before it at the same address."""
        return str(self._ask(lambda client: client._do_request("GET", "/api/version").json())["session_name"])

    def run_python(self, text: str) -> str:
        """Start a job that is not a stage but runs `text`; returns its id."""
        where = self._place()
        return str(self._ask(lambda client: client.submit_job(entrypoint=shlex.join([self.python, "-c", text]), **where)))

    def has_ended(self, job: str) -> bool:
        """Whether such a job has ended."""
        return bool(self._ask(lambda client: client.get_job_status(job)).is_terminal())

    def job_log(self, job: str) -> str:
        """What such a job printed, or why it did not start."""
        log, message = self._ask(lambda client: (client.get_job_logs(job), client.get_job_info(job).message))
        return log or message or ""

    def _place(self, reserves: bool = False) -> dict[str, Any]:
        resources = dict(self._settings.driver_resources)
        cpus = resources.pop("CPU", None)
        if reserves:
            # With CPUs in hand while they wait for others, drivers could hold all there are, and wait for ever. The crumb of
            # memory is for Ray, which keeps drivers that ask for nothing on the head.
            return {"entrypoint_memory": _CRUMB_BYTES, "entrypoint_resources": resources}
        return {"entrypoint_num_cpus": cpus, "entrypoint_resources": resources}

    def _ask(self, question: Callable[[Any], AnswerT]) -> AnswerT:
        try:
            if self._client is None:
                self._client = _BoundedClient(self._address)
            return question(self._client)
        except (requests.RequestException, ConnectionError, RayError, json.JSONDecodeError) as error:
            raise ExecutorUnreachableError(f"Ray at {self._address}: {error}") from error
        except RuntimeError as error:
            if "already exists" in str(error):
                raise DuplicateJobError(str(error)) from error
            raise ExecutorUnreachableError(f"Ray at {self._address}: {error}") from error
