"""Resuming is exact, and a checkpoint is whole or not there."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from data_processing.errors import ConfigError
from rlhf_core.engine.checkpoint import latest_checkpoint, write_checkpoint
from rlhf_core.models.lora import merged_state_dict
from rlhf_core.settings.training import EngineSettings, LoraSettings
from tests.engine.training import Run, start, step, token_rows
from tests.tiny_models import tiny_model

pytestmark = pytest.mark.seconds

LAYOUTS = [("fp32", 0, None), ("bf16", 1, LoraSettings(rank=4)), ("fp32", 2, None), ("bf16", 3, LoraSettings(rank=4))]


@pytest.mark.parametrize(("dtype", "stage", "lora"), LAYOUTS)
def test_a_resumed_run_ends_with_the_weights_of_one_never_stopped(
    tmp_path: Path, dtype: Any, stage: int, lora: LoraSettings | None
) -> None:
    run = Run(tiny_model(tmp_path, "llama"), EngineSettings(zero_stage=stage, dtype=dtype), lora, micro_batches=2)
    engine = start(run)
    step(engine, run, token_rows())
    engine.save(tmp_path / "resume" / "one", {"cursor": 8})
    drawn = [random.random(), torch.rand(()).item()]
    step(engine, run, token_rows()[:5])
    step(engine, run, token_rows()[3:])

    resumed = start(run)
    assert resumed.load(tmp_path / "resume" / "one") == {"cursor": 8}
    assert resumed.steps_done == 1
    assert [random.random(), torch.rand(()).item()] == drawn
    step(resumed, run, token_rows()[:5])
    _, stats = step(resumed, run, token_rows()[3:])
    assert stats.learning_rate < run.optimizer.learning_rate
    expected, got = merged_state_dict(engine.module.hf), merged_state_dict(resumed.module.hf)
    assert all(torch.equal(got[name], expected[name]) for name in expected)


@pytest.mark.parametrize("changes", [{"dtype": "fp32"}, {"zero_stage": 2}])
def test_a_checkpoint_of_another_layout_is_refused_by_name(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = tiny_model(tmp_path, "llama")
    start(Run(model, EngineSettings(zero_stage=1, dtype="bf16"))).save(tmp_path / "resume" / "one", {})
    other = start(Run(model, EngineSettings(**{"zero_stage": 1, "dtype": "bf16"} | changes)))
    with pytest.raises(ConfigError, match=f"engine.{next(iter(changes))}="):
        other.load(tmp_path / "resume" / "one")


def small_checkpoint(folder: Path, number: int) -> Path:
    target = folder / f"step_{number}"
    write_checkpoint(target, lambda part: (part / "weights").write_bytes(bytes([number]) * 100) and None, {"step": number})
    return target


def test_only_the_newest_two_are_kept_and_the_newest_is_the_latest(tmp_path: Path) -> None:
    for number in (9, 10, 11):
        small_checkpoint(tmp_path, number)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_10", "step_11"]
    assert latest_checkpoint(tmp_path) == tmp_path / "step_11"


def test_saving_the_same_step_again_replaces_it(tmp_path: Path) -> None:
    small_checkpoint(tmp_path, 1)
    write_checkpoint(tmp_path / "step_1", lambda part: (part / "weights").write_bytes(b"new") and None, {"step": 1})
    assert (tmp_path / "step_1" / "weights").read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["step_1"]


@pytest.mark.parametrize("damage", ["truncate", "alter", "remove", "manifest", "no manifest"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    small_checkpoint(tmp_path, 1)
    newest = small_checkpoint(tmp_path, 2)
    if damage == "truncate":
        os.truncate(newest / "weights", 50)
    elif damage == "alter":
        (newest / "weights").write_bytes(bytes([3]) * 100)
    elif damage == "remove":
        (newest / "weights").unlink()
    elif damage == "manifest":
        (newest / "manifest.json").write_text('{"facts": {"st')
    else:
        (newest / "manifest.json").unlink()
    assert latest_checkpoint(tmp_path) == tmp_path / "step_1"
    assert damage == "no manifest" or "step_2" in caplog.text


def test_without_a_checkpoint_there_is_none(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "absent") is None


WRITER = """
import sys, time
from pathlib import Path
from rlhf_core.engine.checkpoint import write_checkpoint

def write(part):
    for i in range(40):
        (part / f"weights_{i}").write_bytes(bytes([i]) * 200_000)

for number in range(2, 10_000):
    write_checkpoint(Path(sys.argv[1]) / f"step_{number}", write, {"step": number})
    print(number, flush=True)
"""


@pytest.mark.parametrize("delay_s", [0.0, 0.03, 0.07, 0.15, 0.31])
def test_a_writer_killed_at_any_moment_leaves_a_whole_checkpoint(tmp_path: Path, delay_s: float) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert process.stdout is not None
    written = int(process.stdout.readline())
    time.sleep(delay_s)
    process.kill()
    process.wait()
    latest = latest_checkpoint(tmp_path)
    assert latest is not None
    assert int(latest.name.removeprefix("step_")) >= written
    assert all(
        file.read_bytes() == bytes([int(file.name.removeprefix("weights_"))]) * 200_000 for file in latest.glob("weights_*")
    )
    write_checkpoint(tmp_path / "next", lambda part: (part / "weights").write_bytes(b"new") and None, {"step": 20_000})
    assert latest_checkpoint(tmp_path) == tmp_path / "next"
