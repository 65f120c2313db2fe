"""Whole runs on a Ray that counts one GPU: two stages of one run and two runs queue for it, and hardly leave it idle."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.runtime.contract.home import Home
from tests.runtime.ray_head import RayHead, running_head

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
TWO_HOLD = ("base_model=writes", "left=holds:base_model", "right=holds:base_model,base_model")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    with running_head(gpus=1, cpus=4) as head:
        yield head


def _start(head: RayHead, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "PREFECT_HOME")}
    variables = {"ALIGNFLOW_HOME": str(folder), "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(HERE)])}
    return subprocess.Popen(
        [sys.executable, str(HERE / "toy_flow.py"), "--ray", *arguments],
        env={**kept, **variables, "RAY_ADDRESS": head.address, "RAY_AUTH_MODE": "disabled"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _held(folder: Path) -> list[tuple[float, float]]:
    found = [json.loads(path.read_text()) for path in (Home.open(folder).store / "model").glob("*/held.json")]
    return [(line["began"], line["ended"]) for line in found]


def test_two_runs_on_one_gpu_both_finish_and_it_is_held_nine_tenths_of_the_time(head: RayHead, tmp_path: Path) -> None:
    homes = [tmp_path / "one", tmp_path / "other"]
    runs = [_start(head, home, *TWO_HOLD) for home in homes]
    printed = [run.communicate(timeout=360)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], printed
    held = sorted(span for home in homes for span in _held(home))
    assert len(held) == 4
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(held))  # never two at a time
    share = sum(ended - began for began, ended in held) / (held[-1][1] - held[0][0])
    print(f"held {share:.1%} of {held[-1][1] - held[0][0]:.1f} s, in four turns")
    assert share >= 0.9
    for text in printed:
        assert "right                  waiting for 1 GPU, which other stages of this run hold" in text
    assert any("left                   waiting for 1 GPU, 0 free" in text for text in printed)


def test_what_the_cluster_never_has_is_refused_before_anything_is_submitted(head: RayHead, tmp_path: Path) -> None:
    run = _start(head, tmp_path / "home", "greedy=holds_two")
    printed, _ = run.communicate(timeout=200)
    assert run.returncode == 10, printed
    assert "greedy: needs 1 x (1 CPU and 2 GPUs), and the cluster never has more than 1 GPU" in printed
    assert list(Home.open(tmp_path / "home").work.iterdir()) == []
