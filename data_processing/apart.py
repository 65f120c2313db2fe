"""What Python processes that are started beside this one share."""

from __future__ import annotations

import os
import sys


def import_path() -> str:
    """PYTHONPATH of a process that is to import what this one can: also from the working directory, where this one does (`python -c`)."""
    return os.pathsep.join(place or os.getcwd() for place in sys.path)


def last_line(text: str) -> str:
    """The last line of what a process that failed has printed: of a traceback the error itself."""
    return (text.strip().splitlines() or ["no output"])[-1]
