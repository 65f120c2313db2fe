"""What a running process takes that no limit of the kernel counts: space in its folder, and threads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

# What a file costs at least, however empty it is.
_ENTRY_BYTES = 4096


def disk_bytes(folder: str, pid: int, enough: int) -> int:
    """Space taken in `folder`, which has no folders in it, and by files of its disk that the process holds open without a name.

    Stops counting past `enough`.
    """
    total = 0
    for taken in chain(_unnamed(pid, Path(folder).stat().st_dev), _in_folder(folder)):
        total += taken
        if total > enough:
            break
    return total


def threads(pid: int) -> int:
    """How many threads the process has, 0 where it has ended."""
    try:
        # A folder's links are itself, its name, and one for each folder in it.
        return Path(f"/proc/{pid}/task").stat().st_nlink - 2
    except OSError:
        return 0


def _in_folder(folder: str) -> Iterator[int]:
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                yield _space(entry.stat(follow_symlinks=False))
            except FileNotFoundError:
                continue


def _unnamed(pid: int, disk: int) -> Iterator[int]:
    try:
        held = list(Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return
    for descriptor in held:
        try:
            status = descriptor.stat()
        except OSError:
            continue
        if status.st_nlink == 0 and status.st_dev == disk:
            yield _space(status)


def _space(status: os.stat_result) -> int:
    return max(status.st_blocks * 512, status.st_size, _ENTRY_BYTES)
