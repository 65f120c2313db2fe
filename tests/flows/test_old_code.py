"""Snapshots of code go when nobody has taken them for a month, and never while something runs them."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from flows.running.dead_runs import look_after
from flows.running.run_folder import RunFolder
from tasks.runtime.contract.home import Home
from tasks.runtime.contract.liveness import announce, retire
from tasks.runtime.contract.spec import write_json
from tasks.runtime.execution.attempts import WorkFolder
from tasks.runtime.keys.snapshot import take_snapshot

_MONTH_S = 31 * 24 * 3600


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.open(tmp_path / "home")


def _old(home: Home, name: str) -> Path:
    place = home.code / name
    (place / "flows").mkdir(parents=True)
    then = time.time() - _MONTH_S
    os.utime(place, (then, then))
    return place


def _names(home: Home) -> set[str]:
    return {path.name for path in home.code.iterdir() if path.name != ".lock"}


def test_what_nobody_has_taken_for_a_month_is_removed(home: Home) -> None:
    for name in ("old", ".part-killed"):
        _old(home, name)
    taken = take_snapshot(home.code, [])
    then = time.time() - _MONTH_S
    os.utime(taken, (then, then))
    assert take_snapshot(home.code, []) == taken, "taken again, so it is used as of now"
    look_after(home)
    assert _names(home) == {taken.name}


def test_what_a_live_run_or_a_live_attempt_of_a_killed_run_works_with_is_kept(home: Home) -> None:
    for name in ("of_the_run", "of_the_attempt", "of_nobody"):
        _old(home, name)
    running = RunFolder(home, "running")
    running.begin(code="of_the_run", prefect_server=None)
    killed = RunFolder(home, "killed")
    killed.begin(code="of_the_attempt", prefect_server=None)
    retire(killed.process_folder)
    attempt = WorkFolder.of(home.work, "train", "key")
    folder = attempt.folder(attempt.begin("train", "key", "subprocess", {}, fresh=True).number)
    write_json(folder / "spec.json", {"producer": {"run": "killed"}})
    announce(folder)
    look_after(home)
    assert _names(home) == {"of_the_run", "of_the_attempt"}
    retire(folder)
    look_after(home)
    assert _names(home) == {"of_the_run"}


def test_nothing_is_removed_while_a_run_lives_that_does_not_say_what_it_uses(home: Home) -> None:
    _old(home, "old")
    RunFolder(home, "running").begin(prefect_server=None)
    look_after(home)
    assert _names(home) == {"old"}
