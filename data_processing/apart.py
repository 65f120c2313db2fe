"""What Python processes that are started beside this one share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile

from data_processing.errors import ConfigError


def import_path() -> str:
    """PYTHONPATH of a process that is to import what this one can: also from the working directory, where this one does (`python -c`)."""
    return os.pathsep.join(place or str(Path.cwd()) for place in sys.path)


def last_line(text: str) -> str:
    """The last line of what a process that failed has printed: of a traceback the error itself."""
    return (text.strip().splitlines() or ["no output"])[-1]


def lines_of(module: str, argument: str, failed: str) -> Iterator[str]:
    """What `python -m module argument` prints, line by line; sets are in the same order each time there.

    Raises `ConfigError`, `failed` with the process's last line behind it, where the process fails.
    """
    environment = {**os.environ, "PYTHONPATH": import_path(), "PYTHONHASHSEED": "0"}
    command = [sys.executable, "-P", "-m", module, argument]
    with (
        TemporaryFile("w+") as errors,
        subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as printing,
    ):
        try:
            yield from printing.stdout or ()
            printing.wait()
        finally:
            printing.kill()
        errors.seek(0)
        last = last_line(errors.read())
    if printing.returncode:
        raise ConfigError(f"{failed}{last}")
