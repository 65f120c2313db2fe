"""Snapshots of code that nothing runs any more are removed; whoever runs the same code again takes a new one."""

from __future__ import annotations

import json
from contextlib import suppress

from flows.running.run_folder import run_folders
from tasks.runtime.contract.home import Home
from tasks.runtime.contract.liveness import is_alive
from tasks.runtime.contract.run_state import read_facts
from tasks.runtime.contract.spec import SPEC_FILE
from tasks.runtime.execution.attempts import WorkFolder
from tasks.runtime.keys.snapshot import remove_snapshots, snapshots_older_than

CODE_FACT = "code"
_KEPT_S = 30 * 24 * 3600.0


def remove_old_code(home: Home) -> None:
    """Remove snapshots that no run has taken for 30 days and that no live run, and no live attempt of a killed one, works with.

    An attempt that resumes another runs the code of the run that starts it, so what has ended needs none.
    """
    if not (old := snapshots_older_than(home.code, _KEPT_S)):
        return
    used = [read_facts(home.runs / run).get(CODE_FACT) for run in _live_runs(home)]
    if None not in used:  # of a run that does not say what it uses, it may be any
        remove_snapshots(home.code, set(old) - set(used), _KEPT_S)


def _live_runs(home: Home) -> set[str]:
    """Names of the runs whose process lives, and of those that began an attempt whose worker does."""
    found = {folder.name for folder in run_folders(home) if folder.is_alive}
    for work in map(WorkFolder, home.work.iterdir()):
        newest = work.newest()
        if newest and is_alive(folder := work.folder(newest.number)):
            with suppress(FileNotFoundError):
                found.add(json.loads((folder / SPEC_FILE).read_text(encoding="utf-8"))["producer"]["run"])
    return found
