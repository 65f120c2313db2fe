"""Jobs through the Ray Jobs API. A job outlives the flow process that submitted it, and is found again by its id."""

from __future__ import annotations

import json
import math
import shlex
import time
from collections.abc import Callable
from typing import Any, TypeVar

import requests
from ray.dashboard.modules.job.common import JobStatus as RayStatus
from ray.exceptions import RayError
from ray.job_submission import JobSubmissionClient

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

AnswerT = TypeVar("AnswerT")


class _BoundedClient(JobSubmissionClient):  # type: ignore[misc]  # Ray is untyped
    """Ray's client, whose requests give up: without a time-out a dead GCS holds a caller for a minute."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        return super()._do_request(method, endpoint, timeout=_CALL_LIMIT_S, **options)


class RayJobsExecutor:
    """Submits to the Ray dashboard at `address` (`http://host:port`); the cluster must reach the home's files."""

    name = "ray"

    def __init__(self, address: str) -> None:
        self._address = address
        self._client: JobSubmissionClient | None = None
        self._next_log: dict[str, float] = {}

    def submit(self, job: Job) -> None:
        """Start the worker as a Ray job. What its environment says can be read by anyone with access to the Jobs API."""
        environment = worker_environment() | {"RAY_JOB_STOP_WAIT_TIME_S": str(math.ceil(job.stop_grace_s))}
        self._ask(
            lambda client: client.submit_job(
                # exec: the signal of a stop must reach the worker, not a shell in front of it
                entrypoint=f"exec {shlex.join(worker_command(job))}",
                submission_id=job.id,
                runtime_env={"env_vars": environment},
            )
        )

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

    def read_log(self, job: Job, offset: int) -> tuple[str, int]:
        """Whole lines after character `offset`. The API hands out the log from its start, so long logs are asked for less often."""
        if time.monotonic() < self._next_log.get(job.id, 0.0):
            return "", offset
        text = self._ask(lambda client: client.get_job_logs(job.id))
        self._next_log[job.id] = time.monotonic() + len(text) / 1e6
        whole, newline, _ = text[offset:].rpartition("\n")
        return whole, offset + len(whole) + len(newline)

    def stop(self, job: Job) -> None:
        """SIGTERM to the driver, SIGKILL after the job's grace; its actors go with it."""
        self._ask(lambda client: client.stop_job(job.id))

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
