"""Room is reserved whole or not at all; whoever waits for it says so again and again, and can be asked to stop."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from data_processing.errors import ConfigError, PreemptedError
from rlhf_core.cluster import placement
from rlhf_core.cluster.placement import reserve, reserved, what_is_missing
from rlhf_core.cluster.resources import Bundle, Resources, Waiting
from tasks.runtime.worker.watch import event_line

REPOSITORY = Path(__file__).resolve().parents[2]
ALL_CPUS = Resources((Bundle(4.0),), "threads")


@pytest.fixture
def all_taken(ray_local: None) -> Iterator[None]:
    with reserved(ALL_CPUS, Waiting(60)):
        yield


@pytest.mark.seconds
@pytest.mark.usefixtures("all_taken")
def test_a_wait_is_said_soon_and_again_and_ends_at_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert placement._SAY_EVERY_S <= 30  # what is silent for longer may be taken for hung
    monkeypatch.setattr(placement, "_SAY_EVERY_S", 2.0)
    said: list[str] = []
    began = time.monotonic()
    with pytest.raises(ConfigError, match=r"needs 2 x \(1 CPU\), which was not free within 7 s .*has 4 CPUs, free now 0 CPUs"):
        reserve(Resources((Bundle(1.0),) * 2), Waiting(7, said.append))
    assert 7 <= time.monotonic() - began < 12
    assert len(said) >= 3
    assert set(said) == {"waiting for 2 CPUs, 0 free"}
    assert not [group for group in ray.util.placement_group_table().values() if group["state"] == "PENDING"]


@pytest.mark.seconds
@pytest.mark.usefixtures("all_taken")
def test_a_wait_is_ended_by_what_it_does_meanwhile() -> None:
    def stop() -> None:
        raise PreemptedError("asked to stop")

    with pytest.raises(PreemptedError):
        reserve(Resources((Bundle(1.0),)), Waiting(meanwhile=stop))
    assert not [group for group in ray.util.placement_group_table().values() if group["state"] == "PENDING"]


def test_what_is_missing_names_what_is_short_or_all_where_it_is_on_the_wrong_nodes() -> None:
    wanted = {"CPU": 2.0, "GPU": 2.0}
    assert what_is_missing(wanted, {"CPU": 8.0, "GPU": 1.0}) == "waiting for 2 GPUs, 1 free"
    assert what_is_missing(wanted, {"CPU": 1.0}) == "waiting for 2 CPUs, 1 free and 2 GPUs, 0 free"
    assert what_is_missing(wanted, {"CPU": 8.0, "GPU": 4.0}) == "waiting for 2 CPUs, 8 free and 2 GPUs, 4 free"
    assert what_is_missing({"memory": 8.0 * 2**30}, {"memory": 2.0**30}) == "waiting for 8 GiB memory, 1 free"


def test_the_workers_log_has_what_a_stage_waits_for() -> None:
    assert event_line({"type": "waiting", "message": "waiting for 1 GPU, 0 free"}) == "waiting for 1 GPU, 0 free"


SAVES_WHEN_ASKED_TO_STOP = """
import os, signal, sys
from pathlib import Path
from rlhf_core.cluster.placement import connected
from rlhf_core.recipes.stop import stop_file_on_sigterm, stop_requested
resume = Path(sys.argv[1])
with stop_file_on_sigterm(resume), connected():
    os.kill(os.getpid(), signal.SIGTERM)
    print("saved" if stop_requested(resume) else "nothing")
"""


@pytest.mark.slow
def test_who_asked_for_sigterm_gets_it_also_beside_ray(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SAVES_WHEN_ASKED_TO_STOP, str(tmp_path)]
    answer = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False)
    assert (answer.returncode, answer.stdout.strip()) == (0, "saved"), (signal.Signals.SIGTERM, answer.stderr)
