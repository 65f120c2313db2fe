"""Processes that alignflow starts and later ends: recorded with their start time, ended with their children, never by name.

A record names a process by id and start time, so an id that the system has given to somebody else is never touched. What a
dead parent left behind is found all the same (`orphans`).
"""

from __future__ import annotations

import random
import re
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import psutil
from pydantic import BaseModel, ConfigDict

from data_processing.errors import AlignflowError, ConfigError
from flows.services.families import MARK, end_all, members
from tasks.runtime.contract.liveness import live_process

LOOPBACK = "127.0.0.1"
# Below what Linux and macOS hand out by themselves.
_PORTS = range(20_000, 32_768)
_LOG_LIMIT_BYTES = 10 << 20


class ServiceError(AlignflowError):
    """A local service that did not start or does not answer; the message holds the end of its log."""


class ProcessRecord(BaseModel):
    """A process we started: who it is, where it answers, where its log is. Times in seconds since the epoch.

    `scratch` is a folder of its own, removed with it. `owner_pid` and `owner_created` name the run it serves; None for
    services, which serve until `alignflow down`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    pid: int
    created: float
    mark: str
    url: str
    log: Path
    scratch: Path | None = None
    owner_pid: int | None = None
    owner_created: float | None = None

    @property
    def process(self) -> psutil.Process | None:
        """The live process of this record, or None."""
        return live_process(self.pid, self.created)

    @property
    def family(self) -> list[psutil.Process]:
        """The process and everything that it started, also when it is gone itself."""
        return members(self.process, self.pid, self.created, self.mark)

    @property
    def orphans(self) -> list[psutil.Process]:
        """What it left behind when it ended; nothing while it lives."""
        return [] if self.process else self.family

    @property
    def has_live_owner(self) -> bool:
        """Whether the run that this process serves is still there."""
        return self.owner_pid is not None and live_process(self.owner_pid, self.owner_created or 0.0) is not None


class Records:
    """The records of a home, one file a process in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def all(self) -> list[ProcessRecord]:
        """Every record, also of processes that have ended."""
        found = []
        for path in sorted(self._folder.glob("*.json")):
            with suppress(FileNotFoundError):
                found.append(ProcessRecord.model_validate_json(path.read_text(encoding="utf-8")))
        return found

    def running(self, name: str) -> ProcessRecord | None:
        """The record called `name` if its process lives."""
        return next((r for r in self.all() if r.name == name and r.process), None)

    def write(self, record: ProcessRecord) -> None:
        """Keep the record; appears whole or not at all."""
        part = self._folder / f".{record.name}.part"
        part.write_text(record.model_dump_json(indent=1), encoding="utf-8")
        part.replace(self._folder / f"{record.name}.json")

    def remove(self, record: ProcessRecord) -> None:
        """Forget the record."""
        (self._folder / f"{record.name}.json").unlink(missing_ok=True)


def start_process(
    name: str,
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    url: str,
    log: Path,
    cwd: Path,
    scratch: Path | None = None,
) -> ProcessRecord:
    """Start `command` in a session of its own, printing to the end of `log`; returns its record, unwritten."""
    mark = secrets.token_hex(8)
    with _opened_log(log, name) as stream:
        child = subprocess.Popen(
            list(command),
            cwd=cwd,
            env={**environment, MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        created = psutil.Process(child.pid).create_time()
    except psutil.NoSuchProcess as error:
        raise ServiceError(f"{name} ended at once; {log_tail(log)}") from error
    return ProcessRecord(name=name, pid=child.pid, created=created, mark=mark, url=url, log=log, scratch=scratch)


# The line that a log has where a process begins to write it.
STARTED = re.compile(r"^--- \S+ started at ")


def _opened_log(log: Path, name: str) -> BinaryIO:
    """The log, open at its end: why the process before this one died stands in it. A long one is put aside, the one before goes."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        if log.stat().st_size > _LOG_LIMIT_BYTES:
            log.replace(log.with_name(f"{log.name}.1"))
    stream = log.open("ab")
    stream.write(f"--- {name} started at {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())
    stream.flush()
    return stream


def stop_process(record: ProcessRecord, grace_s: float = 10.0) -> int:
    """End the process and everything it started: SIGTERM, after `grace_s` seconds SIGKILL. Returns how many had to be killed."""
    killed = end_all(lambda: record.family, grace_s)
    if record.scratch:
        shutil.rmtree(record.scratch, ignore_errors=True)
    return killed


def free_port() -> int:
    """A loopback port that nobody listens on at the moment; `ServiceError` where there is none.

    Not one that the system gives to whoever asks for any: Ray alone asks for dozens while the servers beside it start.
    """
    for port in random.SystemRandom().sample(_PORTS, len(_PORTS)):
        with socket.socket() as listener, suppress(OSError):
            listener.bind((LOOPBACK, port))
            return port
    raise ServiceError(f"no free port from {_PORTS.start} to {_PORTS.stop - 1}; end what listens there")


def check_port_free(port: int, option: str) -> None:
    """`ConfigError` naming the port, and the process that holds it where it can be seen."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            raise ConfigError(
                f"{option}: port {port} is in use by {port_holder(port)}; end that process or choose another port with {option}"
            ) from error


def port_holder(port: int) -> str:
    """Who listens on a port: name and process id, or that it cannot be seen."""
    with suppress(psutil.Error, OSError):
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return f"'{psutil.Process(connection.pid).name()}' (process {connection.pid})"
    return "a process that this user cannot see"


def log_tail(log: Path, lines: int = 15) -> str:
    """Where the log is, and its last lines."""
    try:
        tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
    except FileNotFoundError:
        tail = []
    return "\n".join([f"its log is {log}:", *tail])
