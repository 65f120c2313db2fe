"""What this machine has to give: memory and GPUs."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")


def available_memory_gib() -> float:
    """Memory that new processes can have, in GiB: what the machine has left, or the container's limit where that is less."""
    free_bytes = float(psutil.virtual_memory().available)
    limit, used = _read_number(_CGROUP / "memory.max"), _read_number(_CGROUP / "memory.current")
    if limit is not None and used is not None:
        free_bytes = min(free_bytes, limit - used + _reclaimable_bytes())
    return free_bytes / 2**30


def gpu_count() -> int:
    """NVIDIA GPUs that processes of this machine may use; loads no library."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = sum(path.name.removeprefix("nvidia").isdigit() for path in Path("/dev").glob("nvidia*"))
    return found if visible is None else min(found, sum(bool(part.strip()) for part in visible.split(",")))


def _reclaimable_bytes() -> float:
    """File cache counts as used by a container, but makes room when it is needed."""
    try:
        lines = (_CGROUP / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0.0
    return sum(float(line.split()[1]) for line in lines if line.split()[0] in ("inactive_file", "active_file"))


def _read_number(path: Path) -> float | None:
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return float(text) if text.isdigit() else None
