"""How a training run is asked to stop: a file below its resume folder, which every rank's process can see.

The signal reaches only the process that started the ranks, so that process leaves the file and the ranks look for it.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from data_processing.errors import PreemptedError

STOP_FILE_NAME = "stop_requested"


@contextmanager
def stop_file_on_sigterm(resume: Path) -> Iterator[None]:
    """While inside, SIGTERM leaves the stop file in `resume` instead of ending the process; main thread only.

    A stop file that an earlier attempt left behind is removed on entry.
    """
    stop_file = resume / STOP_FILE_NAME
    resume.mkdir(parents=True, exist_ok=True)
    stop_file.unlink(missing_ok=True)

    def leave_file(signum: int, frame: FrameType | None) -> None:
        stop_file.touch()

    previous = signal.signal(signal.SIGTERM, leave_file)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def stop_requested(resume: Path) -> bool:
    """Whether the run that keeps its checkpoints in `resume` was asked to stop."""
    return (resume / STOP_FILE_NAME).exists()


def stop_if_requested_while(resume: Path, doing: str) -> None:
    """Raise `PreemptedError` where the run was asked to stop `doing` what it has nothing to keep of."""
    if stop_requested(resume):
        raise PreemptedError(f"asked to stop while {doing}; the next attempt goes on where this one began")
