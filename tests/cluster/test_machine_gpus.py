"""Rays that share a machine have its GPUs one after the other; stages of one Ray have them together; nothing is left locked."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from data_processing.errors import ConfigError
from rlhf_core.cluster.machine_gpus import FOLDER_VARIABLE, gpus_of_this_machine
from rlhf_core.cluster.resources import Waiting

REPOSITORY = Path(__file__).resolve().parents[2]
HOLDER = """
import sys, time
from rlhf_core.cluster.machine_gpus import gpus_of_this_machine
from rlhf_core.cluster.resources import Waiting
with gpus_of_this_machine(sys.argv[1], Waiting()):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "locks"))
    return tmp_path / "locks"


@contextmanager
def _held_by(session: str) -> Iterator[subprocess.Popen[str]]:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, session], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        yield holder
    finally:
        holder.kill()
        holder.wait()


def test_a_stage_of_another_ray_waits_says_so_and_has_them_when_the_holder_is_killed() -> None:
    said: list[str] = []
    with _held_by("one") as holder:
        too_late = pytest.raises(
            ConfigError, match=r"GPUs of this machine.*not free within 0\.5 s \(runtime\.placement_timeout_s\)"
        )
        with too_late, gpus_of_this_machine("other", Waiting(0.5, said.append)):
            pass
        assert len(said) == 1
        assert said[0].startswith("waiting for the GPUs of this machine, which a run on another Ray holds")
        with gpus_of_this_machine("other", Waiting(60, meanwhile=holder.kill)):
            assert holder.wait() == -9


def test_stages_of_one_ray_have_them_together() -> None:
    with _held_by("one"), gpus_of_this_machine("one", Waiting(0.1)):
        pass


def test_who_left_holds_nothing(locks: Path) -> None:
    for session in ("one", "other", "one"):
        with gpus_of_this_machine(session, Waiting(0.1)):
            pass
    assert locks.stat().st_mode & 0o7777 == 0o1777  # for every user of the machine
    assert [path.name for path in locks.glob("*.ray")] == ["one.ray"]
    began = time.monotonic()
    with gpus_of_this_machine("third", Waiting()):
        assert time.monotonic() - began < 1
