"""Whether there is room on the disk."""

from __future__ import annotations

import shutil
from pathlib import Path

from data_processing.errors import ConfigError


def free_disk_gib(folder: Path) -> float:
    """Free space on the filesystem of `folder`, in GiB."""
    return shutil.disk_usage(folder).free / 2**30


def check_free_disk(folder: Path, wanted_gib: float) -> None:
    """Raise `ConfigError` where less than `runtime.min_free_disk_gib` is free."""
    free_gib = free_disk_gib(folder)
    if free_gib < wanted_gib:
        raise ConfigError(
            f"runtime.min_free_disk_gib: {wanted_gib:g} GiB wanted, {free_gib:.1f} GiB free at {folder}; free some, lower it, or "
            "set ALIGNFLOW_HOME"
        )
