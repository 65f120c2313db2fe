"""CPU seconds and peak memory of a process and all its descendants, read from outside."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil

RESOLUTION_S = 0.01
_GONE = (psutil.NoSuchProcess, psutil.AccessDenied, ProcessLookupError, FileNotFoundError, PermissionError)


def processes(pid: int) -> list[psutil.Process]:
    """The process and its descendants that are alive now."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def cpu_s(pid: int) -> float:
    """User and system seconds of the living tree and of the children it has waited for; `RESOLUTION_S` a process."""
    total = 0.0
    for process in processes(pid):
        with contextlib.suppress(*_GONE):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def reset_peak(pid: int) -> None:
    """Let every process of the tree forget its peak resident size (Linux: 5 into clear_refs)."""
    for process in processes(pid):
        with contextlib.suppress(*_GONE):
            Path(f"/proc/{process.pid}/clear_refs").write_text("5")


def peak_mib(pid: int) -> float:
    """Sum of the peak resident sizes (VmHWM) of the tree's processes, MiB."""
    return sum(_status_mib(process.pid, "VmHWM") for process in processes(pid))


def _status_mib(pid: int, field: str) -> float:
    with contextlib.suppress(*_GONE):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) / 1024
    return 0.0


def resident_mib() -> float:
    """Resident size of this process, MiB."""
    return float(psutil.Process().memory_info().rss) / 2**20


def end_tree(pid: int, grace_s: float) -> None:
    """End the process and its descendants: asked first, killed after `grace_s` seconds."""
    tree = processes(pid)
    for process in tree:
        with contextlib.suppress(*_GONE):
            process.terminate()
    _, alive = psutil.wait_procs(tree, timeout=grace_s)
    for process in alive:
        with contextlib.suppress(*_GONE):
            process.kill()
