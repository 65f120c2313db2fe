"""Who waits for an attempt: one folder for each of them, below the attempt's own.

A job belongs to all who wait for it. Who leaves early leaves it to the others, and the last one stops it. So that nobody joins
a job that is being stopped, this changes under the lock of the work folder only.
"""

from __future__ import annotations

import secrets
from pathlib import Path

from tasks.runtime.contract.folders import make_folder
from tasks.runtime.contract.liveness import announce, beat, is_alive, retire
from tasks.runtime.contract.spec import STOP_FILE


class Follower:
    """One who waits for the attempt in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._attempt = folder
        self._others = folder / "followers"
        self._own = self._others / secrets.token_hex(8)

    def join(self) -> None:
        """Wait for the attempt from now on."""
        make_folder(self._attempt, self._others.name, self._own.name)
        announce(self._own)

    def beat(self) -> None:
        """Say, to those on other machines, that this one still waits."""
        beat(self._own)

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


def is_stopping(folder: Path) -> bool:
    """Whether the attempt in `folder` was left by all who waited for it."""
    return (folder / STOP_FILE).exists()
