"""Two ranks train as one does, and a stop request reaches them all."""

import os
import signal
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from data_processing.errors import PreemptedError
from rlhf_core.cluster.launch import launch
from rlhf_core.cluster.resources import ranks
from rlhf_core.engine.checkpoint import latest_checkpoint
from rlhf_core.recipes.job import TrainingJob
from rlhf_core.recipes.preference import train_preference
from rlhf_core.recipes.reward_model import train_reward_model
from rlhf_core.recipes.sft import train_sft
from rlhf_core.settings.training import OptimizerSettings
from tasks.runtime.contract.context import StageContext
from tasks.sft import STAGE
from tests.recipes.small_jobs import (
    curve,
    engine,
    events,
    job,
    preference_config,
    reward_config,
    sft_config,
    train_each,
    train_from_half_the_reference,
    weights,
)
from tests.tiny_models import Architecture

Models = dict[Architecture, Path]

SMOOTH = OptimizerSettings(learning_rate=1e-2, schedule="constant", warmup_fraction=0.0, epsilon=1e-3)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_local")]


RECIPES: dict[str, tuple[Any, Any, int]] = {
    "sft": (train_sft, sft_config, 3),
    "reward_model": (train_reward_model, reward_config, 1),
    "preference": (train_preference, preference_config, 2),
    "kto": (train_preference, partial(preference_config, method="kto", kto={"undesirable_weight": 0.1}), 2),
}


@pytest.fixture(scope="module")
def runs(
    ray_local: None, models: Models, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[TrainingJob[Any], TrainingJob[Any]]]:
    """Each recipe on one rank and on two; the ranks start once and train one recipe after the other."""
    # Ten rows make batches of 3, 3, 3 and 1: on the last one the second rank has nothing to do.
    changes = {"optimizer": SMOOTH, "eval_every_steps": 2, "batch_size": 3}
    folder, ones, twos = tmp_path_factory.mktemp("ranks"), {}, {}
    for name, (train, config, zero_stage) in RECIPES.items():
        ones[name] = job(config(**changes), models["llama"], data, folder / f"{name}-one")
        layout = engine(world_size=2, zero_stage=zero_stage)
        twos[name] = job(config(engine=layout, **changes), models["llama"], data, folder / f"{name}-two")
        train(ones[name])
    twos["half scored"] = job(twos["preference"].config, models["llama"], data, folder / "half-two")
    plan = [(train, twos[name]) for name, (train, *_) in RECIPES.items()]
    plan.append((partial(train_from_half_the_reference, twos["preference"].resume), twos["half scored"]))
    launch(train_each, plan, resources=ranks(2), threads=1)
    return {name: (ones.get(name, twos["preference"]), twos[name]) for name in twos}


@pytest.mark.parametrize("recipe", RECIPES)
def test_two_ranks_train_as_one(recipe: str, runs: dict[str, tuple[TrainingJob[Any], TrainingJob[Any]]]) -> None:
    one, two = runs[recipe]
    for name in ("loss", "eval_loss"):
        assert curve(two, name) == pytest.approx(curve(one, name), abs=5e-6)
    assert curve(two, "grad_norm") == pytest.approx(curve(one, "grad_norm"), rel=1e-4)
    assert curve(two, "tokens") == curve(one, "tokens")
    other = weights(two)
    assert all(torch.allclose(value, other[name], atol=1e-5) for name, value in weights(one).items())


def test_two_ranks_score_what_an_ended_attempt_left(runs: dict[str, tuple[TrainingJob[Any], TrainingJob[Any]]]) -> None:
    whole, resumed = runs["half scored"]
    [one], [other] = (list(run.resume.glob("reference_logps-*.safetensors")) for run in (whole, resumed))
    assert torch.equal(load_file(one)["logps"], load_file(other)["logps"])
    assert all(torch.equal(value, weights(resumed)[name]) for name, value in weights(whole).items())


def test_sigterm_to_the_stage_stops_all_ranks_with_a_checkpoint(models: Models, data: Path, tmp_path: Path) -> None:
    run = job(sft_config(max_steps=2000, engine=engine(world_size=2)), models["llama"], data, tmp_path)
    inputs = {"model": run.model, "data": run.data}
    context = StageContext(run.config, inputs, {}, run.output, run.resume, run.seed, 1, run.events)

    def stop_at_step_two() -> None:
        while not (run.events.path.is_file() and len(events(run, "progress")) >= 2):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_at_step_two, daemon=True).start()
    with pytest.raises(PreemptedError):
        STAGE.run(context)
    steps_done = len(curve(run, "loss"))
    assert 2 <= steps_done < 2000
    assert latest_checkpoint(run.resume) == run.resume / f"step_{steps_done:08d}"
