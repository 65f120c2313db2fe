"""Supervised fine-tuning: maximise the log-probability of the assistant turns, each token counting the same but for weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from data_processing.schemas import canonical_json, hash64
from rlhf_core.batching.collate import ModelBatch, scatter
from rlhf_core.batching.templates import Renderer
from rlhf_core.engine.engine import TrainingEngine
from rlhf_core.models.embedding_noise import EmbeddingNoise
from rlhf_core.models.load import load_lm
from rlhf_core.models.modules import PolicyModule
from rlhf_core.recipes.cursor import plan_cursor
from rlhf_core.recipes.examples import Example, Splits, conversation, windows
from rlhf_core.recipes.job import TrainingJob
from rlhf_core.recipes.loop import Totals, Trainer
from rlhf_core.recipes.start import check_and_load_tokenizer, finish, load_examples, load_trainable, start_engine
from rlhf_core.settings.supervised import SftConfig


def train_sft(job: TrainingJob[SftConfig]) -> None:
    """Train `job.model` on the sft table and write the checkpoint artifact; runs on every rank alike.

    Raises `ConfigError`, `DataError`, `DivergedError` or `PreemptedError` (a checkpoint is saved).
    """
    config = job.config
    tokenizer = check_and_load_tokenizer(job)
    splits = sft_examples(job, Renderer(tokenizer))
    cursor = plan_cursor(config, splits.train, job.seed)

    policy = load_trainable(job, load_lm)
    module = PolicyModule(policy, config.engine.packing)
    if config.neftune_alpha is not None:
        # Rows with the same prompt have different noise on it.
        module.layouts = replace(module.layouts, shared=False)
    engine = start_engine(job, module, cursor.total_steps)

    def loss(batch: ModelBatch, examples: Sequence[Example], totals: Totals) -> dict[str, Tensor]:
        # What every target weighs is known, so the head's gradient need not wait for the loss.
        slopes_BT = -weights_of(batch, examples) / totals.weight
        logprobs_BT, _ = engine.module(batch, expected_grad=slopes_BT, noise=noise_for(job, engine, examples))
        return {"loss": (slopes_BT * logprobs_BT).sum()}

    evaluation = Trainer(job, engine, cursor, splits, loss, tokenizer.pad_token_id).run()
    finish(job, engine, splits, evaluation)


def sft_examples(job: TrainingJob[Any], renderer: Renderer) -> Splits:
    """The rows of the sft table as the settings have them: which turns are learnt, conditions, long texts in windows."""
    config = job.config
    render = partial(conversation, renderer, last_only=config.loss_on == "last", condition=config.condition)
    if not config.cut_texts:
        return load_examples(job, "sft", render)
    return load_examples(job, "sft", render, partial(windows, tokens=config.max_length_tokens))


def weights_of(batch: ModelBatch, examples: Sequence[Example]) -> Tensor:
    """What the batch's targets count in the loss, [n_rows, T]."""
    weights = [weight for example in examples for row in example.rows for weight in row.target_weights]
    return scatter(batch, torch.tensor(weights, device=batch.target_ids.device))


def noise_for(job: TrainingJob[Any], engine: TrainingEngine, examples: Sequence[Example]) -> EmbeddingNoise | None:
    """The noise of this optimizer step on the rows of `examples`: of the seed, the step and the row's id, and of nothing else."""
    alpha = job.config.neftune_alpha
    if alpha is None or not engine.module.training:
        return None
    seeds = [hash64(canonical_json([job.seed, engine.steps_done, example.id])) for example in examples]
    return EmbeddingNoise(alpha, seeds, [len(example.rows[0]) for example in examples])
