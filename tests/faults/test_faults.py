"""What one fault costs: nothing is lost, everything is published once, nothing stays behind, and the next run ends the same.

`make faults` runs these in a namespace of their own, and writes the table of docs/operations.md.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.faults.bench import Bench, bench, wait_for
from tests.faults.fault_stages import TRAIN

pytestmark = [
    pytest.mark.slow,
    pytest.mark.faults,
    pytest.mark.timeout(900),
    pytest.mark.skipif("ALIGNFLOW_FAULTS" not in os.environ, reason="has a command of its own: make faults"),
]

STEPS = TRAIN.config().steps
_GRACE_S = 40.0
_QUIET_S = 30.0

Fault = Callable[[Bench, subprocess.Popen[bytes]], None]


def kill(*words: str) -> Fault:
    """SIGKILL to every process with all of `words` in its command line."""

    def strike(at: Bench, run: subprocess.Popen[bytes]) -> None:
        found = at.named(*words)
        assert found, f"no process has {words}"
        for process in found:
            process.kill()

    return strike


def to_run(number: signal.Signals, times: int = 1) -> Fault:
    """A signal to the run's process."""

    def strike(at: Bench, run: subprocess.Popen[bytes]) -> None:
        for _ in range(times):
            run.send_signal(number)
            time.sleep(1.0)

    return strike


def both(at: Bench, run: subprocess.Popen[bytes]) -> None:
    """The run and the stage's worker."""
    run.kill()
    kill("tasks.runtime.worker")(at, run)


FAULTS: dict[str, tuple[Fault, tuple[str, ...], str]] = {
    # fault: what strikes, states that the run may end in, what a reader is told of its end
    "SIGKILL of the run": (to_run(signal.SIGKILL), ("crashed",), "its stage goes on and is attached to"),
    "SIGKILL of a stage's worker": (kill("tasks.runtime.worker"), ("finished",), "another attempt goes on from the checkpoint"),
    "SIGKILL of run and worker": (both, ("crashed",), "the next run goes on from the checkpoint"),
    "SIGTERM of the run": (to_run(signal.SIGTERM), ("cancelled",), "the stage saves and ends"),
    "Ctrl-C": (to_run(signal.SIGINT), ("cancelled",), "the stage saves and ends"),
    "Ctrl-C twice": (to_run(signal.SIGINT, 2), ("cancelled",), "the stage saves and ends"),
    "SIGKILL of Ray's job supervisor": (kill("ray::JobSupervisor"), ("finished",), "another attempt goes on"),
    "SIGKILL of the raylet": (kill("raylet/raylet"), ("finished", "failed"), "the run ends; the next one goes on"),
    "SIGKILL of Ray's GCS": (kill("gcs_server"), ("finished", "failed"), "the run ends; the next one goes on"),
    "SIGKILL of the run's Prefect server": (
        kill("server", "start", "--no-ui"),
        ("finished",),
        "it is started again, and the run goes on",
    ),
}


@pytest.fixture(scope="module")
def undisturbed() -> np.ndarray:
    """What no fault changes."""
    weights = np.zeros(4096)
    for step in range(STEPS):
        weights = 0.9 * weights + np.random.default_rng(step).standard_normal(4096)
    return weights


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_costs_nothing(name: str, undisturbed: np.ndarray) -> None:
    strike, states, told = FAULTS[name]
    with bench() as at:
        run = at.run()
        at.until_step(4)
        strike(at, run)
        _check(at, run, name, states, told, undisturbed)


def test_an_actor_that_dies_costs_one_attempt(undisturbed: np.ndarray) -> None:
    with bench(actor=True) as at:
        run = at.run()
        at.until_step(4)
        kill("ray::_Rank")(at, run)
        _check(at, run, "SIGKILL of a Ray actor", ("finished",), "another attempt goes on from the checkpoint", undisturbed)


def test_two_runs_with_one_key_do_the_work_once(undisturbed: np.ndarray) -> None:
    with bench(held=True) as at:
        first = at.run()
        at.until_step(2)
        second = at.run()
        wait_for(lambda: "attached to attempt" in at.log(), "the second run", at.log)
        at.open()
        assert (_ended(at, first), _ended(at, second)) == (0, 0), at.log()[-6000:]
        assert at.steps() == list(range(1, STEPS + 1))
        _check(at, second, "two runs, one key", ("finished",), "the second attaches to the first's work", undisturbed)


def test_two_hosts_share_a_home(undisturbed: np.ndarray) -> None:
    """Another host by name and by process ids, as far as Linux can make one here."""
    with bench(held=True) as at:
        first = at.run()
        at.until_step(2)
        second = at.run("unshare", "-u", "sh", "-c", 'hostname other; exec "$@"', "sh")
        wait_for(lambda: "attached to attempt" in at.log(), "the second host", at.log)
        at.open()
        assert (_ended(at, first), _ended(at, second)) == (0, 0), at.log()[-6000:]
        assert at.steps() == list(range(1, STEPS + 1))
        _check(at, second, "two hosts, one home", ("finished",), "the second attaches by the heartbeat", undisturbed)


def test_a_disk_that_is_full_loses_nothing(undisturbed: np.ndarray) -> None:
    with bench() as at:
        at.home.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", str(at.home)], check=True)
        run = at.run()
        at.until_step(4)
        fill = at.home / "fill"
        with pytest.raises(OSError, match="No space left"), fill.open("wb", buffering=0) as stream:
            while True:
                stream.write(bytes(1 << 16))
        code = _ended(at, run)
        fill.unlink()
        assert code != 0
        _check(
            at,
            run,
            "a full disk",
            ("failed", "crashed"),
            "the run ends and says so; with room, the next one goes on",
            undisturbed,
        )


def _check(
    at: Bench, run: subprocess.Popen[bytes], name: str, states: tuple[str, ...], told: str, undisturbed: np.ndarray
) -> None:
    """The fault is over: look at what is there, run again, and look once more."""
    code = _ended(at, run)
    before = at.steps()
    after = at.run()
    assert _ended(at, after) == 0, at.log()[-8000:]
    repeated = len(at.steps()) - len(set(at.steps()))
    assert sorted(set(at.steps())) == list(range(1, STEPS + 1))
    assert repeated <= 1, f"steps done twice: {at.steps()}"
    [manifest] = at.published()
    weights = np.load(next(at.home.glob("store/numbers/*/weights.npy")))
    np.testing.assert_array_equal(weights[:-1], undisturbed)
    left = _left(at)
    assert not left, f"left running: {left}"
    assert at.states()[0] in states, at.states()
    assert at.states()[-1] == "finished"
    _keep(
        name,
        {
            "ended": at.states()[0],
            "exit code": code,
            "then": told,
            "steps before": len(set(before)),
            "steps done again": repeated,
            "published": 1,
            "attempts": manifest["producer"]["attempt"],
            "left running": 0,
            "same weights": True,
        },
    )


def _ended(at: Bench, run: subprocess.Popen[bytes]) -> int:
    wait_for(lambda: run.poll() is not None, "the end of the run", at.log)
    return int(run.returncode)


def _left(at: Bench) -> list[str]:
    """What still runs for the home after a while."""
    deadline = time.monotonic() + _QUIET_S
    while (left := at.processes()) and time.monotonic() < deadline:
        time.sleep(0.5)
    return [" ".join(p.cmdline())[:120] for p in left if psutil.pid_exists(p.pid)]


def _keep(name: str, facts: dict[str, object]) -> None:
    """For the table."""
    with Path(os.environ["ALIGNFLOW_FAULTS"]).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"fault": name, **facts}) + "\n")
