"""Which processes belong to a process we started, also when it is gone: its descendants, its mark, its session.

Every process we start carries a random mark in its environment, which what it starts inherits, and leads a session of its own.
A daemon leaves the session and keeps the mark; a process that writes its title over its environment keeps the session.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import psutil

MARK = "ALIGNFLOW_PROCESS_MARK"
_CLOCK_S = 1.0  # start times are known to a hundredth of a second, and read from two clocks


def members(root: psutil.Process | None, pid: int, created: float, mark: str) -> list[psutil.Process]:
    """The process `root` (None where it is gone), which had id `pid` and began at `created`, with all that belongs to it.

    Never this process itself.
    """
    found = {process.pid: process for process in _tree(root)}
    for process, environment in _others():
        carries = environment.get(MARK) == mark
        if carries or ("PATH" not in environment and _is_in_session(process, pid, created)):
            found[process.pid] = process
    return list(found.values())


def strays(home: Path, known: Collection[str]) -> list[psutil.Process]:
    """Processes that carry the mark of something we started in `home`, and none of the `known` marks: no record names them."""
    return [
        process
        for process, environment in _others()
        if environment.get("ALIGNFLOW_HOME") == str(home) and MARK in environment and environment[MARK] not in known
    ]


def end_all(find: Callable[[], list[psutil.Process]], grace_s: float) -> int:
    """SIGTERM to what `find` returns, after `grace_s` seconds SIGKILL to what it returns then. Returns how many were killed."""
    family = find()
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    psutil.wait_procs(family, timeout=grace_s)
    left = find()
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=grace_s)
    return len(left)


def _tree(root: psutil.Process | None) -> list[psutil.Process]:
    if root is None:
        return []
    try:
        family = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
    return [process for process in family if process.pid != os.getpid()]


def _others() -> Iterator[tuple[psutil.Process, Mapping[str, str]]]:
    """Every process of this machine that can be looked into, but this one and those that it runs under, with its environment."""
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.pid not in own and process.status() != psutil.STATUS_ZOMBIE:
                yield process, process.environ()


def _is_in_session(process: psutil.Process, leader: int, since: float) -> bool:
    """Whether it is in the session that `leader` led; the id of a session is given to nobody else while one of it lives."""
    return os.getsid(process.pid) == leader and process.create_time() >= since - _CLOCK_S
