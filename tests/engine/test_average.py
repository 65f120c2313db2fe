"""The moving average of the weights: what it is, that training does not see it, and that it is what is measured and saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf_core.engine.convert import convert_checkpoint
from rlhf_core.engine.engine import TrainingEngine
from rlhf_core.models.load import load_lm
from rlhf_core.models.lora import merged_state_dict
from rlhf_core.settings.models import ConvertConfig
from rlhf_core.settings.training import EngineSettings, LoraSettings
from tests.engine.training import STEPS, Run, start, step, token_rows
from tests.tiny_models import tiny_model

pytestmark = pytest.mark.seconds

DECAY = 0.2
# A weight of bf16 has eight bits; two roundings meet here.
EXACT, ROUNDED = {"atol": 1e-6, "rtol": 0.0}, {"atol": 1e-3, "rtol": 2.0**-7}
LAYOUTS = [("fp32", stage, offload) for stage, offload in [(0, False), (1, False), (1, True), (2, False), (3, False), (3, True)]]
LAYOUTS += [("bf16", 1, False), ("bf16", 3, False)]


def weights_of(engine: TrainingEngine) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in merged_state_dict(engine.module.hf, torch.float32).items()}


def run_on(folder: Path, dtype: Any, stage: int, offload: bool, decay: float | None) -> Run:
    settings = EngineSettings(zero_stage=stage, dtype=dtype, offload_optimizer=offload)
    return Run(tiny_model(folder, "llama"), settings, ema_decay=decay)


@pytest.mark.parametrize(("dtype", "stage", "offload"), LAYOUTS)
def test_it_is_the_average_of_the_steps_and_training_does_not_see_it(
    tmp_path: Path, dtype: Any, stage: int, offload: bool
) -> None:
    plain, engine = (start(run_on(tmp_path, dtype, stage, offload, decay)) for decay in (None, DECAY))
    expected = weights_of(engine)
    for number in range(1, STEPS + 1):
        _, stats = step(engine, run_on(tmp_path, dtype, stage, offload, DECAY), token_rows())
        assert stats == step(plain, run_on(tmp_path, dtype, stage, offload, None), token_rows())[1]
        present, kept = weights_of(engine), min(DECAY, (1 + number) / (10 + number))
        expected = {name: kept * expected[name] + (1 - kept) * weight for name, weight in present.items()}
        with engine.averaged():
            averaged = weights_of(engine)
        after = weights_of(engine)
        assert all(torch.equal(after[name], weight) for name, weight in present.items())
    for name, weight in expected.items():
        assert not torch.equal(weight, present[name]), "the last weights are their average, so nothing is shown"
        # In bf16 the model computes with the rounded average, and `present` has been rounded too.
        torch.testing.assert_close(averaged[name], weight, **(EXACT if dtype == "fp32" else ROUNDED))


@pytest.mark.parametrize(("dtype", "stage", "lora"), [("fp32", 0, None), ("bf16", 1, LoraSettings(rank=4)), ("bf16", 3, None)])
def test_a_resumed_run_has_the_average_of_one_never_stopped_and_saves_it(
    tmp_path: Path, dtype: Any, stage: int, lora: LoraSettings | None
) -> None:
    run = Run(tiny_model(tmp_path, "llama"), EngineSettings(zero_stage=stage, dtype=dtype), lora, ema_decay=0.9)
    engine = start(run)
    step(engine, run, token_rows())
    engine.save(tmp_path / "resume" / "one", {})
    step(engine, run, token_rows()[:5])
    resumed = start(run)
    resumed.load(tmp_path / "resume" / "one")
    step(resumed, run, token_rows()[:5])
    with engine.averaged(), resumed.averaged():
        expected, got = weights_of(engine), weights_of(resumed)
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    (tmp_path / "checkpoint").mkdir()
    resumed.save_final(tmp_path / "checkpoint")
    convert_checkpoint(tmp_path / "checkpoint", run.model, tmp_path / "out", ConvertConfig(dtype="fp32"), {})
    saved = load_lm(tmp_path / "out", dtype="fp32", attention="sdpa").state_dict()
    last = weights_of(resumed)
    for name, weight in got.items():
        torch.testing.assert_close(saved[name], weight, **(EXACT if dtype == "fp32" else ROUNDED))
    gap = sum(float((saved[name] - last[name]).abs().sum()) for name in last)
    assert gap > 3 * sum(float((saved[name] - weight).abs().sum()) for name, weight in got.items())
