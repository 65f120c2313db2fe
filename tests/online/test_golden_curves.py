"""Every online method learns, and learns as it did: rewards round by round against those that are kept, also across a resume."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from data_processing.errors import PreemptedError
from rlhf_core.events import EventLog
from rlhf_core.recipes.online.run import run_online
from rlhf_core.recipes.stop import STOP_FILE_NAME
from tests.online.golden import FILE, RUNS, golden_job
from tests.online.runs import metric

pytestmark = [pytest.mark.usefixtures("ray_local"), pytest.mark.slow]

CURVES = json.loads(FILE.read_text(encoding="utf-8"))
# Means of 64 responses; another processor draws others once the weights differ in the last bit.
TOLERANCE = 0.12


# One of each family: with a critic, with a coefficient that is steered, with a baseline of the whole batch, of groups.
RESUMED = {"ppo in one loss": 6, "reinforce": 5, "reinforce_pp_baseline": 7, "gspo": 6}


@dataclass(frozen=True)
class StoppingLog(EventLog):
    """Asks the run to stop once round `after` is done."""

    resume: Path
    after: int

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        super().metrics(step, values)
        if step == self.after:
            (self.resume / STOP_FILE_NAME).touch()


@pytest.mark.parametrize("name", RUNS)
def test_a_method_learns_as_it_did(name: str, tmp_path: Path) -> None:
    job = golden_job(name, tmp_path)
    if name in RESUMED:
        with pytest.raises(PreemptedError, match=f"after {RESUMED[name]} of"):
            run_online(replace(job, events=StoppingLog(job.events.path, job.resume, RESUMED[name])))
        (job.resume / STOP_FILE_NAME).unlink()
    run_online(job)
    rewards, kept = metric(job, "reward/mean"), CURVES[name]
    assert rewards[0] == pytest.approx(kept[0], abs=0.02)
    assert rewards == pytest.approx(kept, abs=TOLERANCE)
    assert sum(rewards[-3:]) > sum(rewards[:3]) + 0.3, "it rises"
    assert max(metric(job, "mismatch_kl")) <= 0.01
    if "adaptive_kl" in RUNS[name]:
        assert metric(job, "kl/coef")[-1] != metric(job, "kl/coef")[0]
