"""The GPUs of a machine on which several Rays run: each would give out the same ones, so one Ray at a time has them.

The locks are the kernel's and belong to the process of a stage: none outlives it, however it ends.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from data_processing.errors import ConfigError
from rlhf_core.cluster.resources import Waiting

FOLDER_VARIABLE = "ALIGNFLOW_GPU_LOCKS"
_FOLDER = "/tmp/alignflow-gpus"
_LOOK_EVERY_S, _SAY_EVERY_S = 1.0, 10.0
_WAIT = "waiting for the GPUs of this machine, which a run on another Ray holds (alignflow up gives all runs one Ray)"


@contextmanager
def gpus_of_this_machine(ray_session: str, waiting: Waiting) -> Iterator[None]:
    """Inside, no stage of another Ray on this machine is; stages of the same `ray_session` may be, as their Ray counts for them.

    Raises `ConfigError` where others hold them for longer than `waiting.limit_s`.
    """
    with _entered(_folder() / f"{ray_session}.ray", waiting):
        yield


def _entered(own: Path, waiting: Waiting) -> IO[bytes]:
    began = say_at = time.monotonic()
    while (held := _enter(own)) is None:
        waiting.meanwhile()
        now = time.monotonic()
        if waiting.limit_s is not None and now - began >= waiting.limit_s:
            raise ConfigError(f"{_WAIT}: not free within {waiting.limit_s:g} s (runtime.placement_timeout_s)")
        if now >= say_at:
            say_at = now + _SAY_EVERY_S
            waiting.say(_WAIT)
        time.sleep(_LOOK_EVERY_S)
    return held


def _enter(own: Path) -> IO[bytes] | None:
    """The file that stands for this Ray, locked beside its other stages; None where another Ray's file is locked."""
    with _opened(own.parent / "lock") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        for other in own.parent.glob("*.ray"):
            if other != own and _is_held(other):
                return None
        held = _opened(own)
        fcntl.flock(held, fcntl.LOCK_SH)
        return held


def _is_held(path: Path) -> bool:
    """Whether a stage holds it; what nobody does is taken away, which is safe in turn only."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    with suppress(OSError):  # another user's stays
        path.unlink()
    return False


def _folder() -> Path:
    """Where the locks of all users of this machine are."""
    folder = Path(os.environ.get(FOLDER_VARIABLE) or _FOLDER)
    if not folder.is_dir():
        folder.mkdir(exist_ok=True)
        folder.chmod(0o1777)
    return folder


def _opened(path: Path) -> IO[bytes]:
    if not path.exists():
        path.touch()
    return path.open("rb")  # other users' files can be locked too, and only be read
