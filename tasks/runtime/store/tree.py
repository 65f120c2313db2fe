"""The files below a folder, and making them durable."""

from __future__ import annotations

import os
from pathlib import Path


def files_in(folder: Path) -> list[Path]:
    """All files, in order; links are followed."""
    return sorted(Path(place) / name for place, _, names in os.walk(folder, followlinks=True) for name in names)


def sync_tree(folder: Path) -> None:
    """fsync every file and folder; what links lead to is somebody else's."""
    for path in files_in(folder):
        if not path.is_symlink():
            sync(path)
    for place, _, _ in os.walk(folder):
        sync(Path(place))


def sync(path: Path) -> None:
    """fsync a file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
