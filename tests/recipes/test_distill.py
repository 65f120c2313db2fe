"""Distillation: the loss is the divergence of its definition, no layout changes it, and a teacher of other tokens is refused."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from transformers import AutoModelForCausalLM

from data_processing.errors import ConfigError
from rlhf_core.batching.templates import Renderer
from rlhf_core.models.load import load_tokenizer
from rlhf_core.recipes.distill import train_distill
from rlhf_core.recipes.job import TrainingJob
from rlhf_core.settings.supervised import DistillationKind
from rlhf_core.settings.training import OptimizerSettings
from tests.masked_divergences import masked_divergences
from tests.recipes.gradients import gradients_of
from tests.recipes.small_jobs import FULL, curve, distill_config, engine, events, job, same_weights, weighted_row, write_sft
from tests.recipes.test_resume_is_exact import crash
from tests.tiny_models import Architecture, alibi_model, tiny_model

Models = dict[Architecture, Path]


def distillation(student: Path, teacher: Path, data: Path, work: Path, **changes: Any) -> TrainingJob[Any]:
    return replace(job(distill_config(**changes), student, data, work), teacher=teacher)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the students' tokens, and of another architecture than the llama."""
    return tiny_model(tmp_path_factory.mktemp("teacher"), "qwen3", seed=4)


@pytest.mark.parametrize("kind", get_args(DistillationKind))
def test_the_loss_is_the_weighted_mean_of_the_divergence(
    kind: DistillationKind, models: Models, teacher: Path, tmp_path: Path
) -> None:
    rows = [weighted_row(number) for number in range(5)]
    changes = {"divergence": kind, "jsd_beta": 0.2, "temperature": 1.5, "batch_size": 5, "max_steps": 1}
    run = distillation(models["llama"], teacher, write_sft(tmp_path / "data", rows), tmp_path, **changes)
    train_distill(run)
    renderer = Renderer(load_tokenizer(models["llama"]))
    own, other = (AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval() for path in (models["llama"], teacher))
    total, weight = 0.0, 0.0
    for row in rows:
        tokens = renderer.conversation(row["messages"])
        at = torch.tensor(tokens.is_target[1:])
        logits = [model(torch.tensor([tokens.ids])).logits[:, :-1][:, at] / 1.5 for model in (own, other)]
        found = masked_divergences(*logits, torch.ones(1, int(at.sum())), kind, 0.2)[0]
        counts = torch.tensor(tokens.target_weights)
        total, weight = total + (found * counts).sum().item(), weight + counts.sum().item()
    assert curve(run, "loss")[0] == pytest.approx(total / weight, rel=1e-5)


@pytest.mark.parametrize("kind", get_args(DistillationKind))
def test_the_student_comes_closer_to_its_teacher(
    kind: DistillationKind, models: Models, teacher: Path, data: Path, tmp_path: Path
) -> None:
    run = distillation(models["llama"], teacher, data, tmp_path, divergence=kind, batch_size=10, max_steps=8)
    train_distill(run)
    losses = curve(run, "loss")
    assert losses[-1] < 0.95 * losses[0]


def test_a_student_that_is_its_teacher_stays_as_it_is(models: Models, data: Path, tmp_path: Path) -> None:
    run = distillation(models["gemma"], models["gemma"], data, tmp_path, max_steps=2, lora=FULL)
    train_distill(run)
    assert curve(run, "loss")[0] == pytest.approx(0.0, abs=1e-6)
    assert curve(run, "grad_norm")[0] == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("alpha", [None, 5.0], ids=["", "noise"])
def test_no_layout_changes_the_gradient(alpha: float | None, models: Models, teacher: Path, tmp_path: Path) -> None:
    data = write_sft(tmp_path / "data", [weighted_row(number) for number in range(7)])
    smooth = OptimizerSettings(learning_rate=0.002, schedule="constant", warmup_fraction=0.0, epsilon=1.0)
    layouts = {"whole": {"micro_batch_tokens": 4096}, "cut": {"micro_batch_tokens": 16}, "padded": {"packing": "off"}}
    runs = {}
    for name, layout in layouts.items():
        changes = {"lora": FULL, "max_steps": 2, "optimizer": smooth, "neftune_alpha": alpha, "divergence": "jsd"}
        run = distillation(models["llama"], teacher, data, tmp_path / name, engine=engine(**layout), **changes)
        runs[name] = partial(train_distill, run)
    found = gradients_of(runs)
    for name in ("cut", "padded"):
        for one, other in zip(found["whole"], found[name], strict=True):
            assert (other - one).norm() <= 2e-6 * one.norm()


def test_a_teacher_that_packing_would_mix_up_is_padded_for_and_one_line_says_so(
    models: Models, data: Path, tmp_path: Path
) -> None:
    run = distillation(models["llama"], alibi_model(tmp_path), data, tmp_path, max_steps=1)
    train_distill(run)
    assert any("batches are padded" in event["message"] for event in events(run, "warning"))
    assert [event["values"]["layout/packed"] for event in events(run, "metrics") if "layout/packed" in event["values"]] == [0.0]


def test_a_crashed_run_ends_with_the_same_weights(models: Models, teacher: Path, data: Path, tmp_path: Path) -> None:
    changes = {"checkpoint_every_steps": 2, "max_steps": 5, "neftune_alpha": 5.0}
    whole, resumed = (distillation(models["llama"], teacher, data, tmp_path / name, **changes) for name in ("whole", "resumed"))
    train_distill(whole)
    crash(train_distill, resumed, at=4)
    train_distill(resumed)
    assert same_weights(whole, resumed)


def test_bf16_learns_too(models: Models, teacher: Path, data: Path, tmp_path: Path) -> None:
    run = distillation(models["llama"], teacher, data, tmp_path, batch_size=10, max_steps=8, engine=engine(dtype="bf16"))
    train_distill(run)
    assert curve(run, "loss")[-1] < 0.95 * curve(run, "loss")[0]


def test_a_teacher_of_other_tokens_is_refused_before_anything_is_loaded(models: Models, data: Path, tmp_path: Path) -> None:
    run = distillation(models["llama"], models["gemma"], data, tmp_path)
    with pytest.raises(ConfigError, match=r"the teacher .*gemma.* has other tokens than the model .*llama") as caught:
        train_distill(run)
    assert "\n" not in str(caught.value)
    assert not run.events.path.exists()
