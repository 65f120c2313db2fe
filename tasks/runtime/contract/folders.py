"""Folders that several people may share: what is made in one is as open to its group, and to others, as that folder is.

A umask decides about one process; a folder decides about everybody who works in it. Libraries write some files for their owner
alone, and Ray's processes have the umask of whoever started the head.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

_READ_WRITE = 0o666


def make_folder(top: Path, *names: str) -> Path:
    """The folder `names` below `top`, created where it is missing, each as open as `top`, which has the mode of the umask.

    Raises `FileExistsError` where something else is in the way, also a link to nothing.
    """
    top.mkdir(parents=True, exist_ok=True)
    folder = top
    for name in names:
        folder /= name
        try:
            folder.mkdir()
        except FileExistsError:
            if not folder.is_dir():
                raise
        else:
            _set_mode(folder, stat.S_IMODE(folder.parent.stat().st_mode))
    return folder


def open_as(folder: Path, like: Path) -> None:
    """Make `folder` and all that is in it as open as the folder `like`; links, and what belongs to others, are left alone."""
    mode = stat.S_IMODE(like.stat().st_mode)
    for place, _, names in os.walk(folder):
        _set_mode(Path(place), mode)
        for path in (Path(place) / name for name in names):
            if not path.is_symlink():
                _set_mode(path, _file_mode(mode, executable=bool(path.stat().st_mode & stat.S_IXUSR)))


def lock_file(path: Path, timeout_s: float = -1) -> FileLock:
    """A lock between processes that everybody who may write to its folder can take; waits `timeout_s` (-1: for ever)."""
    mode = _file_mode(stat.S_IMODE(path.parent.stat().st_mode), executable=False)
    return FileLock(path, timeout=timeout_s, mode=mode, thread_local=False)


def _file_mode(folder_mode: int, *, executable: bool) -> int:
    owner = stat.S_IRUSR | stat.S_IWUSR
    return owner | folder_mode & (0o777 if executable else _READ_WRITE)


def _set_mode(path: Path, mode: int) -> None:
    with suppress(PermissionError):  # another's, or a file system without modes
        path.chmod(mode)
