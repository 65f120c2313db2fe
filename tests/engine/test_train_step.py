"""One optimizer step is the same mathematics at every ZeRO stage, precision aside, however the batch is cut."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from data_processing.errors import ConfigError, DivergedError
from rlhf_core.batching.collate import collate
from rlhf_core.engine.engine import TrainingEngine
from rlhf_core.engine.optimizer import learning_rate_at
from rlhf_core.models.load import load_lm
from rlhf_core.models.lora import merged_state_dict
from rlhf_core.models.modules import PolicyModule
from rlhf_core.settings.training import EngineSettings, LoraSettings, OptimizerSettings, Schedule
from tests.engine.training import OPTIMIZER, STEPS, Outcome, Run, start, step, token_rows, train
from tests.tiny_models import tiny_model

pytestmark = pytest.mark.seconds

LORA = LoraSettings(rank=4)


def plain_torch(model: Path) -> Outcome:
    """The same run written out with torch alone: one batch, AdamW, clipping."""
    module = PolicyModule(load_lm(model, dtype="fp32", attention="sdpa"))
    decayed = [p for p in module.parameters() if p.ndim >= 2]
    others = [p for p in module.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": OPTIMIZER.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, eps=OPTIMIZER.epsilon)
    rows, losses, norms = token_rows(), [], []
    for i in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(i, STEPS, OPTIMIZER)
        loss = -module(collate(rows, pad_id=0, packed=False))[0].sum() / sum(row.n_targets for row in rows)
        loss.backward()
        losses.append(loss.item())
        norms.append(torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0).item())
        optimizer.step()
        optimizer.zero_grad()
    return Outcome(losses, norms, merged_state_dict(module.hf, torch.float32))


def assert_same(outcome: Outcome, expected: Outcome) -> None:
    assert outcome.losses == pytest.approx(expected.losses, abs=5e-6)
    assert outcome.grad_norms == pytest.approx(expected.grad_norms, rel=1e-5)
    for name, weight in expected.weights.items():
        torch.testing.assert_close(
            outcome.weights[name], weight, atol=1e-6, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("micro_batches", [1, 8, 11])
def test_in_fp32_every_stage_and_cut_is_plain_torch(tmp_path: Path, stage: int, micro_batches: int) -> None:
    model = tiny_model(tmp_path, "llama")
    settings = EngineSettings(zero_stage=stage, dtype="fp32")
    assert_same(train(Run(model, settings, micro_batches=micro_batches)), plain_torch(model))


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("lora", [None, LORA], ids=["all weights", "lora"])
def test_in_bf16_every_micro_batch_counts_once(tmp_path: Path, stage: int, lora: LoraSettings | None) -> None:
    settings = EngineSettings(zero_stage=stage, dtype="bf16")
    runs = [train(Run(tiny_model(tmp_path, "llama"), settings, lora, micro_batches=n)) for n in (1, 4)]
    assert runs[1].losses == pytest.approx(runs[0].losses, abs=5e-3)
    assert runs[1].grad_norms == pytest.approx(runs[0].grad_norms, rel=2e-2)


@pytest.mark.parametrize(
    "changes",
    [{"offload_optimizer": True}, {"gradient_checkpointing": True}, {"zero_stage": 3, "gradient_checkpointing": True}],
    ids=str,
)
@pytest.mark.parametrize("lora", [None, LORA], ids=["all weights", "lora"])
def test_what_saves_memory_changes_nothing(tmp_path: Path, changes: dict[str, Any], lora: LoraSettings | None) -> None:
    model = tiny_model(tmp_path, "qwen3")
    plain = train(Run(model, EngineSettings(zero_stage=1, dtype="fp32"), lora))
    saving = train(Run(model, EngineSettings(**{"zero_stage": 1, "dtype": "fp32"} | changes), lora, micro_batches=3))
    assert_same(saving, plain)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_loss_that_is_not_finite_stops_before_the_weights_change(tmp_path: Path, stage: int) -> None:
    run = Run(tiny_model(tmp_path, "llama"), EngineSettings(zero_stage=stage, dtype="fp32"))
    engine = start(run)
    before = merged_state_dict(engine.module.hf)
    batch = collate(token_rows(), pad_id=0, packed=True)
    with pytest.raises(DivergedError, match="loss of optimizer step 1 is nan"):
        engine.train_step([lambda: engine.module(batch)[0].sum() * math.nan])
    after = merged_state_dict(engine.module.hf)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(("stage", "dtype"), [(0, "fp32"), (1, "fp32"), (1, "bf16"), (2, "bf16"), (3, "fp32"), (3, "bf16")])
def test_a_gradient_that_is_not_finite_stops_before_the_weights_change(tmp_path: Path, stage: int, dtype: Any) -> None:
    run = Run(tiny_model(tmp_path, "llama"), EngineSettings(zero_stage=stage, dtype=dtype))
    engine = start(run)
    before = merged_state_dict(engine.module.hf)
    batch = collate(token_rows(), pad_id=0, packed=True)

    def loss() -> torch.Tensor:
        # The square root of 0 is 0 and has an infinite slope.
        return (engine.module(batch)[0].sum() * 0.0).sqrt()

    with pytest.raises(DivergedError, match="gradient norm of optimizer step 1"):
        engine.train_step([loss])
    after = merged_state_dict(engine.module.hf)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_evaluating_has_no_gradient_and_gives_training_back(tmp_path: Path) -> None:
    engine = start(Run(tiny_model(tmp_path, "llama"), EngineSettings(dtype="fp32")))
    with engine.evaluating():
        assert not engine.module.training
        assert not engine.module(collate(token_rows(), pad_id=0, packed=True))[0].requires_grad
    assert engine.module.training
    assert torch.is_grad_enabled()


def test_a_learning_rate_of_zero_is_a_control_that_changes_nothing(tmp_path: Path) -> None:
    run = Run(tiny_model(tmp_path, "llama"), EngineSettings(dtype="bf16"), optimizer=OptimizerSettings(learning_rate=0.0))
    engine = start(run)
    losses = [step(engine, run, token_rows())[0] for _ in range(STEPS)]
    assert losses == [losses[0]] * STEPS


@pytest.mark.parametrize("schedule", list(Schedule))
def test_learning_rate_warms_up_to_the_peak_and_never_reaches_zero_before_the_end(schedule: Schedule) -> None:
    settings = OptimizerSettings(learning_rate=1.0, schedule=schedule, warmup_fraction=0.2)
    rates = [learning_rate_at(i, 20, settings) for i in range(20)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert all(rate > 0 for rate in rates)
    expected = {Schedule.constant: 1.0, Schedule.linear: 0.5, Schedule.cosine: 0.5}
    assert rates[12] == pytest.approx(expected[schedule])
    assert sorted(rates[4:], reverse=True) == rates[4:]


def test_an_engine_without_steps_is_refused(tmp_path: Path) -> None:
    module = PolicyModule(load_lm(tiny_model(tmp_path, "llama"), dtype="fp32", attention="sdpa"))
    with pytest.raises(ConfigError, match="total_steps=0"):
        TrainingEngine(module, optimizer=OPTIMIZER, engine=EngineSettings(dtype="fp32"), total_steps=0)


def test_a_model_without_trainable_weights_is_refused(tmp_path: Path) -> None:
    module = PolicyModule(load_lm(tiny_model(tmp_path, "llama"), dtype="fp32", attention="sdpa")).requires_grad_(False)
    with pytest.raises(ConfigError, match="no trainable parameter"):
        TrainingEngine(module, optimizer=OPTIMIZER, engine=EngineSettings(dtype="fp32"), total_steps=1)
