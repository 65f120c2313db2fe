"""Running arms against each other: each a process of its own, one step at a time, in the order A B B A A B B A.

Every step's CPU seconds (user and system, the whole tree) and peak memory are read from outside the arm, between the
moment it is granted the step and the moment it reports it. Arms never compute at the same time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from compare import process_tree
from compare.turns import POLL_S, Turns

BENCHMARKS = Path(__file__).resolve().parent.parent
ROOT = BENCHMARKS.parent
PEER_PYTHON = ROOT / ".venv-peer" / "bin" / "python"
# The same for every arm; constant rate, no warm-up.
LEARNING_RATE = 1e-4
SEED = 7
START_TIMEOUT_S = 600.0
STEP_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Arm:
    """One way of doing the work: who does it, by which recipe or trainer, with which settings, and from which checkout."""

    name: str
    by: Literal["ours", "trl"]
    recipe: str
    settings: dict[str, Any]
    threads: int = 1
    root: Path = ROOT


@dataclass
class Taken:
    """One step of one arm. `peak_mib` is the sum of the peak resident sizes of its processes during the step."""

    step: int
    cpu_s: float
    wall_s: float
    peak_mib: float
    loss: float | None
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass
class Running:
    """An arm that has started and taken step 1, for `start_cpu_s` CPU seconds in all; `taken` are the steps since."""

    arm: Arm
    turns: Turns
    process: subprocess.Popen[bytes]
    first: dict[str, Any]
    libraries_mib: float
    start_cpu_s: float
    taken: list[Taken] = field(default_factory=list)

    def take(self, step: int) -> None:
        """Let the arm take one step, and measure it."""
        pid = self.process.pid
        process_tree.reset_peak(pid)
        cpu_s, began = process_tree.cpu_s(pid), time.monotonic()
        self.turns.grant(step)
        report = _await_step(self.process, self.turns, step, STEP_TIMEOUT_S)
        self.taken.append(
            Taken(
                step=step,
                # A toy step may take less than the clock can tell.
                cpu_s=max(process_tree.cpu_s(pid) - cpu_s, process_tree.RESOLUTION_S),
                wall_s=time.monotonic() - began,
                peak_mib=process_tree.peak_mib(pid),
                loss=report["loss"],
                metrics=report.get("metrics", {}),
            )
        )


def duel(arms: Sequence[Arm], work: Path, steps: int) -> list[Running]:
    """All arms on the rows of `work`: step 1 is dropped, the others up to `steps` are interleaved. Ended on return."""
    with ExitStack() as stack:
        running = [stack.enter_context(_started(arm, work, number, steps)) for number, arm in enumerate(arms)]
        for step, turn in schedule(running, steps):
            turn.take(step)
            print(f"  step {step}: {turn.arm.name}: {turn.taken[-1].cpu_s:.2f} CPU-s", flush=True)
        return running


def apart(arms: Sequence[Arm], work: Path, steps: int) -> list[Running]:
    """Every arm by itself, in the order A B B A: for arms that go on computing after they have reported a step."""
    found: dict[str, Running] = {}
    for arm in [*arms, *reversed(arms)]:
        [run] = duel([arm], work, steps)
        found.setdefault(arm.name, replace(run, taken=[])).taken.extend(run.taken)
    return list(found.values())


def schedule(running: Sequence[Running], steps: int) -> Iterator[tuple[int, Running]]:
    """Steps from 2 on; the order of the arms turns round from step to step."""
    for step in range(2, steps + 1):
        for turn in running if step % 2 == 0 else reversed(running):
            yield step, turn


@contextmanager
def _started(arm: Arm, work: Path, number: int, steps: int) -> Iterator[Running]:
    """The arm's process, waiting for its turn after step 1; it and all it started are gone at the end."""
    folder = work / f"arm{number}-{time.monotonic_ns() % 10**9}"
    folder.mkdir()
    turns = Turns(folder, os.getpid())
    spec = {
        "recipe": arm.recipe,
        "settings": arm.settings,
        "work": str(work),
        "turns": str(folder),
        "runner_pid": os.getpid(),
        "steps": steps,
        "seed": SEED,
        "learning_rate": LEARNING_RATE,
    }
    (folder / "spec.json").write_text(json.dumps(spec))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [str(python_of(arm)), "-m", f"compare.arm_{arm.by}", str(folder / "spec.json")],
            env=_environment(arm, folder),
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        first = _await_step(process, turns, 1, START_TIMEOUT_S)
        libraries_mib = float((folder / "libraries_mib").read_text())
        yield Running(arm, turns, process, first, libraries_mib, process_tree.cpu_s(process.pid))
    finally:
        process_tree.end_tree(process.pid, grace_s=3.0)
        process.wait()


def python_of(arm: Arm) -> Path:
    """The interpreter of the arm's environment."""
    return Path(os.environ.get("PEER_PYTHON", PEER_PYTHON)) if arm.by == "trl" else Path(sys.executable)


def _environment(arm: Arm, folder: Path) -> dict[str, str]:
    """The same for both, but for what can be imported: the peer must not see this project's packages."""
    paths = [str(arm.root / BENCHMARKS.name)] + ([str(arm.root)] if arm.by == "ours" else [])
    threads = str(arm.threads)
    return {
        **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(folder / "datasets"),
        "DS_ACCELERATOR": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        # Ray's sockets live below it, and their paths must be short.
        "RAY_TMPDIR": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def _await_step(process: subprocess.Popen[bytes], turns: Turns, step: int, timeout_s: float) -> dict[str, Any]:
    """What the arm reports of `step`; raises with the end of its log where it dies or takes too long."""
    deadline = time.monotonic() + timeout_s
    while len(reported := turns.reported()) < step:
        if process.poll() is not None or time.monotonic() > deadline:
            reason = f"ended with code {process.poll()}" if process.poll() is not None else f"took more than {timeout_s:g} s"
            log = (turns.folder / "log").read_text(errors="replace")[-4000:]
            raise RuntimeError(f"arm in {turns.folder}, step {step}: {reason}; its log ends with\n{log}")
        time.sleep(POLL_S)
    return reported[step - 1]
