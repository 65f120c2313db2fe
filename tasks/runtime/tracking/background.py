"""Telling the tracker what waits in a home in a process of its own, `python -m tasks.runtime.tracking HOME`.

A run that took everything from the cache is over before MLflow is imported, and does not wait for it.
"""

from __future__ import annotations

import subprocess
import sys

from tasks.runtime.contract.home import Home
from tasks.runtime.keys.closure import PROJECT_ROOT


def deliver_in_background(home: Home) -> None:
    """Start that process and leave it; it ends by itself. What it does not get rid of is sent by a later run."""
    start_in_background("tasks.runtime.tracking", home)


def start_in_background(module: str, home: Home) -> None:
    """Start `python -m module HOME`, which outlives this process and is not waited for."""
    subprocess.Popen(
        [sys.executable, "-m", module, str(home.root)],
        cwd=PROJECT_ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
