"""Who waits for an attempt: one folder for each of them, below the attempt's own.

A job belongs to all who wait for it. Who leaves early leaves it to the others, and the last one stops it. So that nobody joins
a job that is being stopped, this changes under the lock of the work folder only.
"""

from __future__ import annotations

import secrets
from pathlib import Path

from tasks.runtime.contract.folders import make_folder
from tasks.runtime.contract.liveness import announce, beat, is_alive, retire, was_announced
from tasks.runtime.contract.spec import STOP_FILE

_FOLDER = "followers"
_SUBMITTER = "submitter-"


class Follower:
    """One who waits for the attempt in `folder`; `submitted`: who has submitted it, and whose executor knows of it."""

    def __init__(self, folder: Path, *, submitted: bool = False) -> None:
        self._attempt = folder
        self._submitted = submitted
        self._others = folder / _FOLDER
        self._own = self._others / f"{_SUBMITTER if submitted else ''}{secrets.token_hex(8)}"

    def join(self) -> None:
        """Wait for the attempt from now on."""
        make_folder(self._attempt, self._others.name, self._own.name)
        announce(self._own)

    def beat(self) -> None:
        """Say, to those on other machines, that this one still waits."""
        beat(self._own)

    def may_begin(self) -> bool:
        """Whether the attempt, of which this one's executor does not know, may be one whose worker has yet to begin."""
        return not self._submitted and is_coming(self._attempt)

    def leave(self) -> bool:
        """Wait no longer. True for the last one that waited: the attempt is marked, and is to be stopped."""
        retire(self._own)
        if any(is_alive(other) for other in self._others.iterdir()):
            return False
        (self._attempt / STOP_FILE).touch()
        return True

    def end(self) -> None:
        """Wait no longer for what has ended."""
        retire(self._own)


def is_coming(folder: Path) -> bool:
    """Whether whoever submitted the attempt in `folder` still waits for its worker, which has not begun.

    Runs may have executors of their own, which know nothing of each other's jobs.
    """
    return not was_announced(folder) and any(is_alive(place) for place in (folder / _FOLDER).glob(f"{_SUBMITTER}*"))


def is_stopping(folder: Path) -> bool:
    """Whether the attempt in `folder` was left by all who waited for it."""
    return (folder / STOP_FILE).exists()
