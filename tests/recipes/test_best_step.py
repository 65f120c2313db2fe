"""Which step's weights stay, when training ends early, and how many rows it sees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from data_processing.errors import ConfigError
from rlhf_core.recipes.best import Best
from rlhf_core.recipes.job import TrainingJob
from rlhf_core.recipes.sft import train_sft
from rlhf_core.settings.supervised import RewardModelConfig, SftConfig
from tests.recipes.small_jobs import curve, events, job, sft_config, summary, weights, write_data
from tests.recipes.test_resume_is_exact import crash
from tests.tiny_models import tiny_model

# So steep that the validation loss falls at first and rises after.
STEEP = {"optimizer": {"learning_rate": 1.0, "schedule": "constant", "warmup_fraction": 0.0}, "lora": {"rank": 0}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def steep_job(model: Path, data: Path, folder: Path, **changes: Any) -> TrainingJob[SftConfig]:
    settings = {"max_steps": 20, "eval_every_steps": 1, "keep_best": "eval_loss", **STEEP, **changes}
    return job(SftConfig.model_validate(sft_config().model_dump() | settings), model, data, folder)


def best_step(run: TrainingJob[Any]) -> int:
    losses = {e["step"]: e["values"]["eval_loss"] for e in events(run, "metrics") if "eval_loss" in e["values"]}
    return min(losses, key=lambda step: losses[step])


def test_the_weights_that_stay_are_those_of_the_best_step(model: Path, data: Path, tmp_path: Path) -> None:
    run = steep_job(model, data, tmp_path / "run")
    train_sft(run)
    step = best_step(run)
    assert 0 < step < 20, "the case is one where the last step is not the best"
    alone = steep_job(model, data, tmp_path / "alone", max_steps=step, keep_best=None, eval_every_steps=0)
    train_sft(alone)
    expected = weights(alone)
    assert all(torch.equal(value, expected[name]) for name, value in weights(run).items())
    assert summary(run)["eval_loss"] == min(curve(run, "eval_loss")), "what is told is told of these weights"
    assert json.loads((run.output / "trainer_state.json").read_text())["steps_done"] == step


def test_a_resumed_run_keeps_the_same_step(model: Path, data: Path, tmp_path: Path) -> None:
    whole, broken = (steep_job(model, data, tmp_path / name, checkpoint_every_steps=2) for name in ("whole", "broken"))
    train_sft(whole)
    crash(train_sft, broken, at=15)
    train_sft(broken)
    expected = weights(whole)
    assert all(torch.equal(value, expected[name]) for name, value in weights(broken).items())


def test_training_ends_when_nothing_gets_better(model: Path, data: Path, tmp_path: Path) -> None:
    run = steep_job(model, data, tmp_path, patience=2, max_steps=40)
    train_sft(run)
    steps = len(curve(run, "loss"))
    assert steps == best_step(run) + 2 < 40
    assert (
        f"ended after step {steps}: eval_loss was no better than at step {best_step(run)}"
        in events(run, "progress")[-1]["message"]
    )


def test_no_more_rows_than_asked_are_seen(model: Path, data: Path, tmp_path: Path) -> None:
    some = job(sft_config(max_samples=4, batch_size=4, max_steps=2), model, data, tmp_path / "some")
    every = job(sft_config(batch_size=4, max_steps=2), model, data, tmp_path / "every")
    train_sft(some)
    train_sft(every)
    assert (summary(some)["train_rows"], summary(every)["train_rows"]) == (4, 10)
    seen, tokens = curve(some, "seen_tokens"), curve(some, "tokens")
    assert seen == [tokens[0], tokens[0] + tokens[1]]
    assert tokens[0] == tokens[1], "the same four rows again"
    assert curve(every, "tokens")[0] != curve(every, "tokens")[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep_best": "eval_loss"}, "eval_every_steps=0: only the last step is measured"),
        ({"keep_best": "loss", "eval_every_steps": 1}, "no metric of the validation split"),
        ({"patience": 2}, "patience=2 without keep_best"),
    ],
)
def test_settings_without_effect_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RewardModelConfig(**settings)


def test_a_metric_that_is_not_measured_is_named(model: Path, data: Path, tmp_path: Path) -> None:
    run = steep_job(model, data, tmp_path / "run", keep_best="eval_accuracy")
    with pytest.raises(ConfigError, match=r"keep_best='eval_accuracy' is not measured; measured are .*eval_loss"):
        train_sft(run)
    bare = write_data(tmp_path / "bare", validation_rows=0)
    with pytest.raises(ConfigError, match="without validation rows"):
        train_sft(steep_job(model, bare, tmp_path / "none"))


def test_more_is_better_but_of_losses(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        folder.joinpath("weights").write_text("")

    best = Best(sft_config(keep_best="eval_accuracy", eval_every_steps=1), tmp_path)
    for step, accuracy in enumerate([0.5, 0.7, 0.6, 0.7]):
        best.see(step, {"eval_accuracy": accuracy}, write)
    assert (best.step, best.worse) == (1, 2)
