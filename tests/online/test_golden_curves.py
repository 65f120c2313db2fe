"""Every online method learns, and learns as it did: rewards round by round against those that are kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf_core.recipes.online.run import run_online
from tests.online.golden import FILE, RUNS, golden_job
from tests.online.runs import metric

pytestmark = [pytest.mark.usefixtures("ray_local"), pytest.mark.slow]

CURVES = json.loads(FILE.read_text(encoding="utf-8"))
# Means of 64 responses; another processor draws others once the weights differ in the last bit.
TOLERANCE = 0.12


@pytest.mark.parametrize("name", RUNS)
def test_a_method_learns_as_it_did(name: str, tmp_path: Path) -> None:
    job = golden_job(name, tmp_path)
    run_online(job)
    rewards, kept = metric(job, "reward/mean"), CURVES[name]
    assert rewards[0] == pytest.approx(kept[0], abs=0.02)
    assert rewards == pytest.approx(kept, abs=TOLERANCE)
    assert sum(rewards[-3:]) > sum(rewards[:3]) + 0.3, "it rises"
    assert max(metric(job, "mismatch_kl")) <= 0.01
    if "adaptive_kl" in RUNS[name]:
        assert metric(job, "kl/coef")[-1] != metric(job, "kl/coef")[0]
