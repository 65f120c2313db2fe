"""Jobs as child processes of this machine, for tests and for machines without Ray.

A worker leads its own session, so it outlives the flow process, and another flow process finds it again through the
record in the attempt's folder.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from contextlib import suppress

import psutil

from tasks.runtime.contract.liveness import announce, is_alive, was_announced, worker_process
from tasks.runtime.contract.spec import LOG_FILE, read_failure, read_result
from tasks.runtime.execution.executor import DuplicateJobError, Job, JobState, JobStatus, worker_command, worker_environment


class SubprocessExecutor:
    """Runs every job at once; the caller bounds how many."""

    name = "subprocess"

    def __init__(self) -> None:
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._stopped: set[str] = set()

    def submit(self, job: Job) -> None:
        """Start the worker. It inherits this process's environment, on top of what every worker gets."""
        if was_announced(job.folder):
            raise DuplicateJobError(f"job {job.id} was submitted before; ids are used once")
        with (job.folder / LOG_FILE).open("ab") as log:
            child = subprocess.Popen(
                worker_command(job),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **worker_environment(job)},
                start_new_session=True,
            )
        with suppress(psutil.NoSuchProcess):
            announce(job.folder, child.pid)
        self._children[job.id] = child

    def state(self, job: Job) -> JobState:
        """By exit code for our own children, else by the worker's record and what it left behind."""
        child = self._children.get(job.id)
        if child is None:
            return self._state_of_stranger(job)
        code = child.poll()
        if code is None:
            return JobState(JobStatus.running)
        _kill_group(child.pid)
        return self._ended(job, code if code >= 0 else 128 - code)

    def stop(self, job: Job) -> None:
        """SIGTERM to the worker alone, so that its helpers live while it saves; after the grace SIGKILL to them all.

        A worker on another machine that shares the home is not reached so; it ends by the file that marks a stopping attempt.
        """
        process = worker_process(job.folder)
        if process is None:
            return
        self._stopped.add(job.id)
        process.send_signal(signal.SIGTERM)
        timer = threading.Timer(job.stop_grace_s, _kill_if_alive, (process,))
        timer.daemon = True
        timer.start()

    def _state_of_stranger(self, job: Job) -> JobState:
        if not was_announced(job.folder):
            return JobState(JobStatus.unknown)
        if is_alive(job.folder):
            return JobState(JobStatus.running)
        if read_result(job.folder):
            return JobState(JobStatus.succeeded, 0)
        failure = read_failure(job.folder)
        return self._ended(job, failure.exit_code if failure else None)

    def _ended(self, job: Job, code: int | None) -> JobState:
        if code == 0:
            return JobState(JobStatus.succeeded, 0)
        return JobState(JobStatus.stopped if job.id in self._stopped else JobStatus.failed, code)


def _kill_if_alive(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            _kill_group(process.pid)


def _kill_group(leader: int) -> None:
    """What a worker leaves in its session when it ends has lost its purpose."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)
