"""Processes that serve one run and end with it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
from filelock import FileLock

from flows.services.processes import ProcessRecord, Records, stop_process
from tasks.runtime.contract.home import Home

_COUNTER = itertools.count(1)


def run_process_name(service: str) -> str:
    """A name for a process that serves this run, unlike that of any other run on this machine."""
    return f"{service}-{os.getpid()}-{next(_COUNTER)}"


@contextmanager
def serving_this_run(home: Home, record: ProcessRecord, grace_s: float) -> Iterator[None]:
    """Own the process while the block lasts, then end it and forget it."""
    taken_as_ours(home, record)
    try:
        yield
    finally:
        # Under its name there may be another by now, that was started in its place.
        current = next((r for r in Records(home.pids).all() if r.name == record.name), record)
        stop_process(current, grace_s)
        Records(home.pids).remove(current)


def taken_as_ours(home: Home, record: ProcessRecord) -> ProcessRecord:
    """The record with this run as the owner of its process, kept."""
    me = psutil.Process()
    ours = record.model_copy(update={"owner_pid": me.pid, "owner_created": me.create_time()})
    Records(home.pids).write(ours)
    return ours


def serves_one_run(home: Home, url: str | None) -> bool:
    """Whether what answers at `url` was started for one run, and ends with it."""
    return any(record.url == url and record.owner_pid is not None for record in Records(home.pids).all())


def is_ours(home: Home, url: str) -> bool:
    """Whether what answers at `url` is a process that alignflow started in this home."""
    return any(record.url == url for record in Records(home.pids).all())


def living(home: Home, service: str) -> ProcessRecord | None:
    """A live process of `service` in this home: that of `alignflow up` first, else one that serves or served a run."""
    found = (r for r in Records(home.pids).all() if r.name.partition("-")[0] == service)
    return next((record for record in found if record.process), None)


def abandoned(home: Home, prefix: str) -> ProcessRecord | None:
    """A live process whose record's name starts with `prefix` and whose run was killed, if there is one."""
    left = (r for r in Records(home.pids).all() if r.name.startswith(prefix) and r.owner_pid is not None)
    return next((r for r in left if r.process and not r.has_live_owner), None)


def taken_over(home: Home, prefix: str) -> ProcessRecord | None:
    """An abandoned process that serves this run from now on, and no other; None where there is none."""
    with FileLock(home.pids / "taking_over.lock"):
        found = abandoned(home, prefix)
        return taken_as_ours(home, found) if found else None
