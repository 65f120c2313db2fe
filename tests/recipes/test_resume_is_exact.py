"""A run that was stopped and resumed ends where one that was never stopped ends, and refuses what would make that untrue."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from data_processing.errors import ConfigError, DataError, PreemptedError
from rlhf_core.engine.checkpoint import latest_checkpoint
from rlhf_core.events import EventLog
from rlhf_core.recipes import reference
from rlhf_core.recipes.job import TrainingJob
from rlhf_core.recipes.preference import train_preference
from rlhf_core.recipes.reward_model import train_reward_model
from rlhf_core.recipes.sft import train_sft
from rlhf_core.recipes.stop import STOP_FILE_NAME
from rlhf_core.settings.training import LoraSettings
from tests.recipes.small_jobs import (
    FULL,
    curve,
    engine,
    events,
    job,
    preference_config,
    reward_config,
    same_weights,
    sft_config,
    weights,
    write_data,
)
from tests.tiny_models import Architecture

pytestmark = pytest.mark.seconds

Models = dict[Architecture, Path]
Job = TrainingJob[Any]

REPOSITORY = Path(__file__).resolve().parents[2]
# Dropout, so that a resumed run must also draw the same numbers.
DROPOUT = LoraSettings(rank=4, alpha=8, dropout=0.2)


class Crash(Exception):
    """What ends a run in these tests."""


@dataclass(frozen=True)
class CrashingLog(EventLog):
    """An event log on a disk that fails when the metrics of one step are written."""

    crash_at: int = 0

    def metrics(self, step: int, values: Any) -> None:
        if step == self.crash_at:
            raise Crash
        super().metrics(step, values)


def crash(train: Any, run: Job, at: int) -> None:
    with pytest.raises(Crash):
        train(replace(run, events=CrashingLog(run.events.path, crash_at=at)))


@pytest.mark.parametrize("lora", [DROPOUT, FULL], ids=["lora", "full"])
@pytest.mark.parametrize(
    ("train", "config"),
    [
        (train_sft, sft_config),
        (train_sft, partial(sft_config, neftune_alpha=5.0)),
        (train_reward_model, reward_config),
        (train_preference, preference_config),
        (train_preference, partial(preference_config, method="kto", kto={"undesirable_weight": 0.1})),
    ],
    ids=["sft", "noisy sft", "reward_model", "preference", "kto"],
)
def test_a_crashed_run_ends_with_the_same_weights(
    train: Any, config: Any, lora: LoraSettings, models: Models, data: Path, tmp_path: Path
) -> None:
    settings = config(lora=lora, checkpoint_every_steps=2, max_steps=7)
    whole, resumed = (job(settings, models["llama"], data, tmp_path / name) for name in ("whole", "resumed"))
    train(whole)
    crash(train, resumed, at=6)
    train(resumed)
    assert same_weights(whole, resumed)
    by_step = {event["step"]: event["values"]["loss"] for event in events(resumed, "metrics") if "loss" in event["values"]}
    assert [by_step[step] for step in range(1, 8)] == curve(whole, "loss")
    assert [event["step"] for event in events(resumed, "metrics") if "loss" in event["values"]] == [1, 2, 3, 4, 5, 5, 6, 7]


def test_a_finished_run_that_could_not_publish_only_saves_again(models: Models, data: Path, tmp_path: Path) -> None:
    run = job(sft_config(checkpoint_every_steps=3), models["llama"], data, tmp_path)
    train_sft(run)
    before = weights(run)
    train_sft(run)
    assert len(curve(run, "loss")) == 6
    assert all(torch.equal(value, before[name]) for name, value in weights(run).items())


def test_a_changed_table_is_refused(models: Models, data: Path, tmp_path: Path) -> None:
    run = job(sft_config(checkpoint_every_steps=1), models["llama"], data, tmp_path)
    crash(train_sft, run, at=3)
    with pytest.raises(DataError, match=r"other rows.*remove"):
        train_sft(replace(run, data=write_data(tmp_path / "other", train_rows=11)))


def test_changed_settings_are_refused_by_name(models: Models, data: Path, tmp_path: Path) -> None:
    run = job(sft_config(checkpoint_every_steps=1), models["llama"], data, tmp_path)
    crash(train_sft, run, at=3)
    with pytest.raises(ConfigError, match="batch_size"):
        train_sft(replace(run, config=sft_config(batch_size=5)))
    with pytest.raises(ConfigError, match="seed"):
        train_sft(replace(run, seed=4))


def test_a_stop_request_saves_the_step_it_came_at(models: Models, data: Path, tmp_path: Path) -> None:
    whole, stopped = (job(sft_config(checkpoint_every_steps=0), models["gpt2"], data, tmp_path / n) for n in ("whole", "stopped"))
    train_sft(whole)

    class StoppingLog(EventLog):
        def metrics(self, step: int, values: Any) -> None:
            super().metrics(step, values)
            if step == 3:
                (stopped.resume / STOP_FILE_NAME).touch()

    with pytest.raises(PreemptedError):
        train_sft(replace(stopped, events=StoppingLog(stopped.events.path)))
    assert latest_checkpoint(stopped.resume) == stopped.resume / "step_00000003"
    (stopped.resume / STOP_FILE_NAME).unlink()
    train_sft(stopped)
    assert same_weights(whole, stopped)


SIGTERM_SCRIPT = """
import sys
from pathlib import Path
from rlhf_core.settings.supervised import SftConfig
from rlhf_core.events import EventLog
from data_processing.errors import AlignflowError
from tasks.runtime.contract.context import StageContext
from tasks.sft import STAGE

config, model, data, work = SftConfig.model_validate_json(sys.argv[1]), *map(Path, sys.argv[2:])
inputs = {"model": model, "data": data}
context = StageContext(config, inputs, {}, work / "output", work / "resume", 3, 1, EventLog(work / "events.jsonl"))
try:
    STAGE.run(context)
except AlignflowError as error:
    sys.exit(error.exit_code)
"""


@pytest.mark.slow
def test_sigterm_saves_and_the_stage_goes_on_from_there(models: Models, data: Path, tmp_path: Path) -> None:
    settings = sft_config(max_steps=120, learning_rate=1e-3, checkpoint_every_steps=0)
    whole, stopped = (job(settings, models["llama"], data, tmp_path / name) for name in ("whole", "stopped"))
    arguments = [settings.model_dump_json(), str(models["llama"]), str(data), str(stopped.resume.parent)]
    process = subprocess.Popen(
        [sys.executable, "-c", SIGTERM_SCRIPT, *arguments], env=os.environ | {"PYTHONPATH": str(REPOSITORY)}
    )
    try:
        deadline = time.monotonic() + 120
        while not (stopped.events.path.is_file() and len(events(stopped, "progress")) >= 3):
            assert time.monotonic() < deadline, "no third step within two minutes"
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == PreemptedError.exit_code
    finally:
        process.kill()
    steps_done = len(curve(stopped, "loss"))
    assert 3 <= steps_done < 120
    assert latest_checkpoint(stopped.resume) == stopped.resume / f"step_{steps_done:08d}"
    (stopped.resume / STOP_FILE_NAME).unlink()
    train_sft(stopped)
    train_sft(whole)
    assert curve(stopped, "loss") == curve(whole, "loss")
    assert same_weights(whole, stopped)


def test_reference_logprobs_are_computed_once(models: Models, data: Path, tmp_path: Path) -> None:
    run = job(preference_config(checkpoint_every_steps=2), models["llama"], data, tmp_path)
    crash(train_preference, run, at=4)
    [cache] = run.resume.glob("reference_logps-*.safetensors")
    written, content = cache.stat().st_mtime_ns, cache.read_bytes()
    assert _scoring_passes(run) > 0
    passes = _scoring_passes(run)
    crash(train_preference, run, at=6)
    assert (cache.stat().st_mtime_ns, _scoring_passes(run)) == (written, passes)
    cache.unlink()
    train_preference(run)
    # The policy has been trained since, and still the reference is the model it started from.
    assert (cache.read_bytes(), _scoring_passes(run)) == (content, 2 * passes)


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_a_reference_pass_that_was_stopped_goes_on_where_it_was(method: Any, models: Models, data: Path, tmp_path: Path) -> None:
    settings = preference_config(method=method, max_steps=2, engine=engine(micro_batch_tokens=64))
    whole, stopped = (job(settings, models["llama"], data, tmp_path / name) for name in ("whole", "stopped"))
    train_preference(whole)
    for at in (3, _scoring_passes(whole) - 2):
        (stopped.resume / STOP_FILE_NAME).unlink(missing_ok=True)
        with pytest.raises(PreemptedError):
            train_preference(replace(stopped, events=StoppedInTheReferencePass(stopped.events.path, at)))
        assert _scoring_passes(stopped) == at
    (stopped.resume / STOP_FILE_NAME).unlink()
    train_preference(stopped)
    assert _scoring_passes(stopped) == _scoring_passes(whole)
    assert _reference_files(stopped) == _reference_files(whole)
    assert curve(stopped, "loss") == curve(whole, "loss")


def test_a_reference_pass_that_was_killed_goes_on_from_what_was_written(
    models: Models, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "WRITE_EVERY_S", 0.0)
    settings = preference_config(max_steps=1, engine=engine(micro_batch_tokens=64))
    whole, killed = (job(settings, models["llama"], data, tmp_path / name) for name in ("whole", "killed"))
    train_preference(whole)
    with pytest.raises(Crash):
        train_preference(replace(killed, events=KilledInTheReferencePass(killed.events.path, 4)))
    train_preference(killed)
    # The micro-batch that it was killed in is scored again.
    assert _scoring_passes(killed) == _scoring_passes(whole) + 1
    assert _reference_files(killed) == _reference_files(whole)


def test_a_truncated_reference_file_is_computed_again(models: Models, data: Path, tmp_path: Path) -> None:
    run = job(preference_config(), models["llama"], data, tmp_path)
    crash(train_preference, run, at=1)
    [cache] = run.resume.glob("reference_logps-*.safetensors")
    content = cache.read_bytes()
    cache.write_bytes(content[: len(content) // 2])
    crash(train_preference, run, at=1)
    assert cache.read_bytes() == content


def test_another_model_has_another_reference(models: Models, data: Path, tmp_path: Path) -> None:
    run = job(preference_config(), models["llama"], data, tmp_path)
    crash(train_preference, run, at=1)
    crash(train_preference, replace(run, model=models["qwen3"]), at=1)
    assert len(list(run.resume.glob("reference_logps-*.safetensors"))) == 2


@dataclass(frozen=True)
class StoppedInTheReferencePass(EventLog):
    """An event log that has the stop file written after so many micro-batches of the reference, in all attempts."""

    after: int

    def progress(self, done: int, total: int, message: str = "") -> None:
        super().progress(done, total, message)
        if self.path.read_text(encoding="utf-8").count(SCORED) == self.after:
            (self.path.parent / "resume" / STOP_FILE_NAME).touch()


@dataclass(frozen=True)
class KilledInTheReferencePass(EventLog):
    """An event log that ends its process, as it were, after so many micro-batches of the reference."""

    after: int

    def progress(self, done: int, total: int, message: str = "") -> None:
        super().progress(done, total, message)
        if self.path.read_text(encoding="utf-8").count(SCORED) == self.after:
            raise Crash


SCORED = "reference log-probs: micro-batch"


def _scoring_passes(run: Job) -> int:
    return sum(event["message"].startswith(SCORED) for event in events(run, "progress"))


def _reference_files(run: Job) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.resume.glob("reference_logps-*.safetensors")}
