"""What the orchestration costs, where the stages themselves cost nothing: writes benchmarks/results/orchestration.json.

    python benchmarks/orchestration.py [--executor ray|subprocess] [--repeats 5]

Eight empty stages in a row are run through the real flow, with the servers that it starts for itself: for the first time,
unchanged again, and from the fifth stage on. Seconds are those of the whole command; a stage's are from the flow's decision
to start it to the one to start the next. Beside them, on a head of the same kind, what Ray takes for an empty job of its own.
Then the tiny pipeline: its stages do little, but each loads what its work needs. Last, `alignflow --help`, and `alignflow plan` of wide
pipelines, in an empty home and in one with many runs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "orchestration.json"
STAGES, FROM = 8, 5
EMPTY_JOBS = 5
CHAIN = ["base_model=writes", "s2=writes:base_model", *(f"s{n}=writes:s{n - 1}" for n in range(3, STAGES + 1))]
PLANNED_SEEDS, EARLIER_RUNS = (16, 32, 66), 300
LATER = [node.partition("=")[0] for node in CHAIN[FROM - 1 :]]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]


@dataclass(frozen=True)
class Run:
    """One command: its seconds in all, those of each node, and those in which stages worked."""

    command_s: float
    nodes_s: dict[str, float]
    work_s: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--executor", choices=["ray", "subprocess"], default="ray")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each kind; the figures are medians")
    arguments = parser.parse_args()
    result = {
        "title": "Orchestration",
        "executor": arguments.executor,
        "repeats": arguments.repeats,
        "cpu_count": os.cpu_count(),
        "load_at_start": round(os.getloadavg()[0], 2),
    }
    result["rows"] = [
        *chain_rows(arguments.executor, arguments.repeats),
        *pipeline_rows(arguments.executor),
        *plan_rows(arguments.repeats),
    ]
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


def chain_rows(executor: str, repeats: int) -> list[dict[str, Any]]:
    """The eight empty stages, and Ray's own empty job where they went through Ray."""
    first, again, later = zip(*(chain_runs(executor) for _ in range(repeats)), strict=True)
    first_s, again_s, later_s = (statistics.median(run.command_s for run in runs) for runs in (first, again, later))
    stage_s = statistics.median(seconds for run in first for seconds in list(run.nodes_s.values())[1:])
    earlier_s = statistics.median(sum(run.nodes_s.values()) - sum(run.nodes_s[name] for name in LATER) for run in first)
    rows = [
        row(f"{STAGES} empty stages, s", first_s),
        row(f"{STAGES} empty stages, seconds a stage", first_s / STAGES, 6.0),
        row("from one empty stage to the next, s", stage_s, 6.0),
        row(f"unchanged rerun, {STAGES} cached stages, s", again_s),
        row(f"{STAGES} cached stages, seconds a stage", again_s / STAGES, 0.5),
        row(f"{STAGES} cached stages over their first run", again_s / first_s, 0.05),
        row(f"rerun from stage {FROM}, s", later_s),
        row(f"rerun from stage {FROM} over the first run less stages 1 to {FROM - 1}", later_s / (first_s - earlier_s), 1.05),
        row(f"stages {FROM} to {STAGES} alone, rerun over first run", _later_s(later) / _later_s(first)),
    ]
    return [*rows, row("an empty job of Ray alone, s", empty_ray_job_s())] if executor == "ray" else rows


def _later_s(runs: Sequence[Run]) -> float:
    """Seconds of the stages from `FROM` on, without starting and ending the servers."""
    return statistics.median(sum(run.nodes_s[name] for name in LATER) for run in runs)


def chain_runs(executor: str) -> tuple[Run, Run, Run]:
    """The first run, the unchanged one, and the one from stage `FROM` on, in a home of their own."""
    # Ray's sockets live below the home, and their paths must be short.
    with tempfile.TemporaryDirectory(prefix="af", dir="/tmp", ignore_cleanup_errors=True) as folder:
        command = [sys.executable, str(ROOT / "tests" / "flows" / "toy_flow.py"), *CHAIN]
        command += ["--ray"] if executor == "ray" else []
        first, again = (run(command, Path(folder)) for _ in range(2))
        return first, again, run([*command, *(f"--force={name}" for name in LATER)], Path(folder))


def pipeline_rows(executor: str) -> list[dict[str, Any]]:
    """The tiny preset, run twice."""
    from tiny_models import tiny_model

    with tempfile.TemporaryDirectory(prefix="af", dir="/tmp", ignore_cleanup_errors=True) as folder:
        model = tiny_model(Path(folder) / "model", "llama", tied=True)
        command = [sys.executable, "-m", "flows.cli", "run", "--preset", "tiny"]
        command += ["--set", f"model.path={model}", "--set", f"runtime.executor={executor}"]
        first, again = (run(command, Path(folder) / "home") for _ in range(2))
    stages = len(first.nodes_s)
    return [
        row(f"tiny pipeline, {stages} stages, s", first.command_s),
        row("tiny pipeline, work of its stages, imports included, s", first.work_s),
        row("tiny pipeline, unchanged rerun, s", again.command_s),
        row("tiny pipeline, seconds a cached stage", again.command_s / stages, 0.5),
        row("tiny pipeline, unchanged rerun over its first run", again.command_s / first.command_s, 0.05),
    ]


def plan_rows(repeats: int) -> list[dict[str, Any]]:
    """`alignflow --help`, and `alignflow plan` of ever wider pipelines, then of the widest where `EARLIER_RUNS` runs had all its nodes."""
    from tiny_models import tiny_model

    with tempfile.TemporaryDirectory(prefix="af", dir="/tmp", ignore_cleanup_errors=True) as folder:
        rows = [row("alignflow --help, s", command_s(["--help"], Path(folder), repeats), 0.3)]
        home, model = Path(folder) / "home", tiny_model(Path(folder) / "model", "llama", tied=True)
        for seeds in PLANNED_SEEDS:
            entries = {
                "sft": {"stage": "sft", "each": {"seed": list(range(seeds))}},
                "reward_model": None,
                "preference": None,
                "online": None,
            }
            assignments = [f"model.path={model}", f"pipeline={json.dumps(entries)}"]
            nodes = 4 + 3 * seeds  # SFT, its conversion and evaluation a seed; base and its evaluation, data, the comparison
            rows.append(row(f"plan of {nodes} nodes, s", plan_s(assignments, home, repeats), 3.0))
        remember_runs(assignments, home)
        rows.append(row(f"plan of {nodes} nodes that {EARLIER_RUNS} runs had, s", plan_s(assignments, home, repeats), 3.0))
    return rows


def plan_s(assignments: Sequence[str], home: Path, repeats: int) -> float:
    """Median seconds of `alignflow plan`."""
    return command_s(["plan", "--preset", "tiny", *(f"--set={text}" for text in assignments)], home, repeats)


def command_s(words: Sequence[str], home: Path, repeats: int) -> float:
    """Median seconds of `alignflow` with these words."""
    command = [sys.executable, "-m", "flows.cli", *words]
    environment = {**os.environ, "ALIGNFLOW_HOME": str(home), "PYTHONPATH": str(ROOT)}
    seconds = []
    for _ in range(repeats):
        began = time.monotonic()
        subprocess.run(command, check=True, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
        seconds.append(time.monotonic() - began)
    return statistics.median(seconds)


def remember_runs(assignments: Sequence[str], home: Path) -> None:
    """Leave records of all nodes in `home`, as runs do that are stopped before anything is done."""
    from flows.commands.actions import Asked, read_request
    from flows.graph.plan import make_plan
    from tasks.runtime.contract.home import Home
    from tasks.runtime.keys.closure import Code
    from tasks.runtime.store.records import NodeRecord, write_node

    opened = Home.open(home)
    asked = read_request(Asked("tiny", None, assignments, None, None, []), opened)
    for name, planned in make_plan(asked.config, asked.selection, opened, Code()).items():
        key = planned.key
        record = NodeRecord(node=name, stage=key.stage.name, key=key.key, description=key.description)
        for run in range(EARLIER_RUNS):
            write_node(opened, f"run{run}", record)


def run(command: Sequence[str], home: Path) -> Run:
    """Run a command in `home` and read from the run it left there where the time went."""
    paths = [str(ROOT), str(ROOT / "tests" / "flows")]
    environment = {**os.environ, "ALIGNFLOW_HOME": str(home), "PYTHONPATH": os.pathsep.join(paths)}
    began = time.monotonic()
    subprocess.run(command, check=True, cwd=ROOT, env=environment, stdout=sys.stderr)
    seconds = time.monotonic() - began
    wait_until_told(home)
    newest = max((home / "runs").iterdir(), key=lambda folder: folder.stat().st_mtime)
    timings = json.loads((newest / "timings.json").read_text(encoding="utf-8"))
    return Run(seconds, {name: node["wall_s"] for name, node in timings["nodes"].items()}, timings["work_s"])


def wait_until_told(home: Path, limit_s: float = 60.0) -> None:
    """A cached run leaves the tracker to a process of its own: it must not weigh on the next run that is timed."""
    deadline = time.monotonic() + limit_s
    records = list((home / "runs").glob("*/tracking/progress.json"))
    while not all(json.loads(record.read_text(encoding="utf-8"))["complete"] for record in records):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{home}: the tracker has not been told of every run after {limit_s:g} s")
        time.sleep(0.2)


def empty_ray_job_s() -> float:
    """Median seconds from submitting `true` to the answer that it has succeeded, asked for every 50 ms."""
    from flows.services.ray_head import ray_for_run
    from tasks.runtime.contract.home import Home

    seconds = []
    with (
        tempfile.TemporaryDirectory(prefix="af", dir="/tmp") as folder,
        ray_for_run(Home.open(Path(folder)), True) as wait_for_ray,
    ):
        address = wait_for_ray()
        # Only now: Ray reads when it is imported how its heads authenticate.
        from ray.job_submission import JobStatus, JobSubmissionClient

        client = JobSubmissionClient(address)
        for _ in range(EMPTY_JOBS):
            began = time.monotonic()
            job = client.submit_job(entrypoint="true")
            while not (status := client.get_job_status(job)).is_terminal():
                time.sleep(0.05)
            assert status is JobStatus.SUCCEEDED, client.get_job_info(job).message
            seconds.append(time.monotonic() - began)
    return statistics.median(seconds)


def row(figure: str, value: float, at_most: float | None = None) -> dict[str, Any]:
    target = "" if at_most is None else f"at most {at_most:g}"
    return {"figure": figure, "value": round(value, 4), "target": target, "reached": "" if at_most is None else value <= at_most}


if __name__ == "__main__":
    main()
