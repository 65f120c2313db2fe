"""The GPU benchmark runs from a checkout with a handful of libraries; at toy size every figure is there."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = REPOSITORY / "benchmarks" / "gpu.py"
# What a machine that only has torch, transformers and deepspeed lacks.
ABSENT = ("ray", "prefect", "mlflow", "vllm", "pyarrow", "msgspec", "datasets", "peft", "typer")
RUN = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({ABSENT!r}))
sys.path[0] = {str(SCRIPT.parent)!r}
runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
"""


@pytest.mark.slow
def test_every_figure_is_there_without_the_rest_of_the_project_installed(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": ""}
    answer = subprocess.run(
        [sys.executable, "-c", RUN, "--toy", "--out", str(out)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr[-3000:]
    result = json.loads(out.read_text())
    figures = {row["figure"]: row["value"] for row in result["rows"]}
    assert result["size"] == "toy"
    assert all(math.isfinite(value) and value >= 0 for value in figures.values())
    assert {row["figure"] for row in result["rows"] if row["target"]} == {
        "sft_packed_share_of_matrix_rate",
        "sft_packed_over_padded",
        "logprobs_peak_over_full",
        "logprobs_time_over_full",
        "grpo_step_speedup",
        "weight_refresh_s",
    }
    assert figures["logprobs_difference_nats"] < 1e-2


def test_figures_of_a_toy_are_not_kept_among_the_results() -> None:
    answer = subprocess.run([sys.executable, str(SCRIPT), "--toy"], capture_output=True, text=True, timeout=60, check=False)
    assert answer.returncode == 2
    assert "--toy needs --out" in answer.stderr
