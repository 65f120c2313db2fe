"""What the orchestration costs: a whole run of the tiny preset, then the same run again with every stage cached.

    python benchmarks/orchestration.py [--executor ray|subprocess]

Orchestration is the time from flow start to finish in which no stage does its own work (`timings.json` of the run), divided
by the number of stages. Work includes a worker's imports; Ray's head, its jobs, Prefect and MLflow are orchestration.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "orchestration.json"


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the cost of orchestration")
    parser.add_argument("--executor", choices=["ray", "subprocess"], default="ray")
    executor = parser.parse_args().executor
    # Ray's sockets live below the home, and their paths must be short.
    with tempfile.TemporaryDirectory(prefix="af", dir="/tmp") as folder:
        model = _tiny_model(Path(folder))
        first = _run(Path(folder), model, executor)
        again = _run(Path(folder), model, executor)
    stages = len(first["nodes"])
    result = {
        "executor": executor,
        "cpu_count": os.cpu_count(),
        "stages": stages,
        "first_run_s": round(first["total_s"], 1),
        "stage_work_s": round(first["work_s"], 1),
        "orchestration_s_per_stage": round(first["overhead_s"] / stages, 2),
        "cached_run_s": round(again["command_s"], 1),
        "cached_flow_s_per_stage": round(again["total_s"] / stages, 2),
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def _tiny_model(folder: Path) -> Path:
    sys.path.insert(0, str(ROOT / "tests"))
    from tiny_models import tiny_model

    return tiny_model(folder / "model", "llama", tied=True)


def _run(folder: Path, model: Path, executor: str) -> dict[str, Any]:
    home = folder / "home"
    command = [sys.executable, "-m", "flows.cli", "run", "--preset", "tiny"]
    command += ["--set", f"model.path={model}", "--set", f"runtime.executor={executor}"]
    began = time.monotonic()
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "ALIGNFLOW_HOME": str(home)})
    newest = max((home / "runs").iterdir(), key=lambda run: run.stat().st_mtime)
    timings: dict[str, Any] = json.loads((newest / "timings.json").read_text())
    return {**timings, "command_s": time.monotonic() - began}


if __name__ == "__main__":
    main()
