"""Ranks: the same losses on two as on one, and the first failure ends the run."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch

from data_processing.errors import ConfigError, DivergedError
from rlhf_core.cluster.launch import launch
from rlhf_core.cluster.resources import ranks
from rlhf_core.models.layouts import Layouts
from rlhf_core.settings.training import EngineSettings, LoraSettings
from tests.engine.ranks import fail_on_rank_one, layouts_where_rank_one_pads, save_and_resume, train_each, who_am_i
from tests.engine.training import Outcome, Run, train
from tests.tiny_models import tiny_model

STAGES = [0, 1, 2, 3]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"), "llama")


@pytest.fixture(scope="module")
def on_two(ray_local: None, model: Path) -> list[Outcome]:
    """What two ranks make of each ZeRO stage, one after the other: starting them takes longer than training."""
    # Eight rows in five micro-batches a rank: the last ones are empty.
    settings = [EngineSettings(world_size=2, zero_stage=stage, dtype="fp32") for stage in STAGES]
    runs = [Run(model, each, micro_batches=5) for each in settings]
    return launch(train_each, runs, resources=ranks(2), threads=1)


def test_one_rank_without_a_gpu_runs_in_this_process() -> None:
    pid = launch(lambda job: (job, os.getpid()), "job", resources=ranks(1), threads=1)
    assert pid == ("job", os.getpid())


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
class TestTwoRanks:
    @pytest.mark.parametrize("stage", STAGES)
    def test_losses_gradients_and_weights_are_those_of_one(self, model: Path, on_two: list[Outcome], stage: int) -> None:
        two = on_two[STAGES.index(stage)]
        one = train(Run(model, EngineSettings(zero_stage=stage, dtype="fp32")))
        assert two.losses == pytest.approx(one.losses, abs=5e-6)
        assert two.grad_norms == pytest.approx(one.grad_norms, rel=1e-5)
        for name, weight in one.weights.items():
            torch.testing.assert_close(two.weights[name], weight, atol=1e-6, rtol=0)

    @pytest.mark.parametrize(("stage", "lora"), [(1, None), (3, LoraSettings(rank=4))])
    def test_a_resumed_run_goes_on_exactly(self, tmp_path: Path, stage: int, lora: LoraSettings | None) -> None:
        run = Run(tiny_model(tmp_path, "llama"), EngineSettings(world_size=2, zero_stage=stage, dtype="bf16"), lora)
        job = (run, tmp_path / "resume")
        assert launch(save_and_resume, job, resources=ranks(2), threads=1) == [True, True]

    def test_every_rank_has_its_place_and_threads(self) -> None:
        assert launch(who_am_i, None, resources=ranks(2), threads=1) == (0, 2, 1)

    def test_what_one_rank_cannot_pack_none_packs(self, tmp_path: Path) -> None:
        run = Run(tiny_model(tmp_path, "llama"), EngineSettings(world_size=2, dtype="fp32"))
        layouts = launch(layouts_where_rank_one_pads, run, resources=ranks(2), threads=1)
        assert layouts == Layouts(packed=False, shared=False)

    @pytest.mark.parametrize(
        ("kind", "error", "message"),
        [
            ("diverged", DivergedError, "rank 1.*loss is nan"),
            ("raise", RuntimeError, "(?s)rank 1.*fail_on_rank_one.*wrong shape"),
            ("crash", RuntimeError, "rank 1.*died"),
        ],
    )
    def test_the_first_rank_that_fails_ends_the_run(self, kind: str, error: type[Exception], message: str) -> None:
        started = time.monotonic()
        with pytest.raises(error, match=message):
            launch(fail_on_rank_one, kind, resources=ranks(2), threads=1)
        assert time.monotonic() - started < 150

    def test_more_ranks_than_there_can_ever_be_room_for_are_an_error_at_once(self) -> None:
        with pytest.raises(ConfigError, match=r"needs 9 x \(1 CPU\), and the cluster never has more than 4 CPUs"):
            launch(who_am_i, None, resources=ranks(9), threads=1)
