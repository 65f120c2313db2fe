"""Knowledge distillation: move a student's next-token distributions towards a teacher's, at the tokens that SFT would learn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_processing.errors import ConfigError
from rlhf_core.batching.collate import ModelBatch
from rlhf_core.batching.templates import Renderer
from rlhf_core.device import device_for
from rlhf_core.models.folder import check_model_folder
from rlhf_core.models.load import load_lm, same_tokens
from rlhf_core.models.modules import LanguageModule, StudentModule
from rlhf_core.recipes.cursor import plan_cursor
from rlhf_core.recipes.examples import Example
from rlhf_core.recipes.job import TrainingJob
from rlhf_core.recipes.loop import Totals, Trainer
from rlhf_core.recipes.sft import noise_for, sft_examples, weights_of
from rlhf_core.recipes.start import check_and_load_tokenizer, finish, load_trainable, start_engine
from rlhf_core.settings.supervised import DistillConfig


def train_distill(job: TrainingJob[DistillConfig]) -> None:
    """Train `job.model` on the sft table towards `job.teacher` and write the checkpoint artifact; runs on every rank alike.

    The teacher is whole on each rank, in the precision that is computed in. Raises what `train_sft` raises, and `ConfigError` for a
    teacher with other tokens.
    """
    config, teacher_folder = job.config, _teacher(job)
    tokenizer = check_and_load_tokenizer(job)
    splits = sft_examples(job, Renderer(tokenizer))
    cursor = plan_cursor(config, splits.train, job.seed)

    student = StudentModule(load_trainable(job, load_lm), config.engine.packing)
    teacher = _load_teacher(job, teacher_folder)
    layouts, others = student.layouts, teacher.layouts
    student.layouts = replace(
        layouts,
        packed=layouts.packed and others.packed,
        shared=layouts.shared and others.shared and config.neftune_alpha is None,
        notes=(*layouts.notes, *others.notes),
    )
    engine = start_engine(job, student, cursor.total_steps)

    def loss(batch: ModelBatch, examples: Sequence[Example], totals: Totals) -> dict[str, Tensor]:
        with torch.no_grad():
            target = teacher.outputs(batch, config.temperature)
        # What every target weighs is known, so gradients need not wait for the loss.
        slopes_BT = weights_of(batch, examples) / totals.weight
        divergence_BT = engine.module(
            batch,
            target,
            kind=config.divergence,
            beta=config.jsd_beta,
            temperature=config.temperature,
            noise=noise_for(job, engine, examples),
            expected_grad=slopes_BT,
        )
        return {"loss": (slopes_BT * divergence_BT).sum()}

    evaluation = Trainer(job, engine, cursor, splits, loss, tokenizer.pad_token_id).run()
    finish(job, engine, splits, evaluation)


def _teacher(job: TrainingJob[DistillConfig]) -> Path:
    """The teacher's folder, seen to be one that the student can learn from; nothing is loaded but tokenizers."""
    if job.teacher is None:
        raise ConfigError("distill: there is no teacher; name the entry of one as the input 'teacher'")
    check_model_folder(job.teacher, trust_remote_code=job.trust_remote_code, max_length_tokens=job.config.max_length_tokens)
    if not same_tokens(job.model, job.teacher, trust_remote_code=job.trust_remote_code):
        raise ConfigError(
            f"distill: the teacher {job.teacher} has other tokens than the model {job.model}, so their next tokens cannot be "
            "compared; choose a teacher of the same family"
        )
    return job.teacher


def _load_teacher(job: TrainingJob[DistillConfig], folder: Path) -> LanguageModule:
    """The teacher, frozen and without dropout, where the student is trained."""
    engine, trust = job.config.engine, job.trust_remote_code
    hf: Any = load_lm(folder, dtype=engine.precision, attention=engine.attention, trust_remote_code=trust)
    hf.requires_grad_(False).to(device_for(engine.gpus_per_rank))
    return LanguageModule(hf, engine.packing).eval()
