"""Supervised fine-tuning: maximise the log-probability of the assistant turns, each token counting the same."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from rlhf_core.batching.collate import ModelBatch
from rlhf_core.batching.templates import Renderer
from rlhf_core.config import SftConfig
from rlhf_core.models.load import load_lm
from rlhf_core.models.modules import PolicyModule
from rlhf_core.recipes.cursor import plan_cursor
from rlhf_core.recipes.examples import Example, conversation
from rlhf_core.recipes.job import TrainingJob
from rlhf_core.recipes.loop import Totals, Trainer
from rlhf_core.recipes.start import check_and_load_tokenizer, finish, load_examples, load_trainable, start_engine


def train_sft(job: TrainingJob[SftConfig]) -> None:
    """Train `job.model` on the sft table and write the checkpoint artifact; runs on every rank alike.

    Raises `ConfigError`, `DataError`, `DivergedError` or `PreemptedError` (a checkpoint is saved).
    """
    config = job.config
    tokenizer = check_and_load_tokenizer(job)
    splits = load_examples(job, "sft", partial(conversation, Renderer(tokenizer)))
    cursor = plan_cursor(len(splits.train), config.batch_size, config.epochs, config.max_steps, job.seed)

    policy = load_trainable(job, load_lm)
    engine = start_engine(job, PolicyModule(policy, config.engine.packing), cursor.total_steps)

    def loss(batch: ModelBatch, examples: Sequence[Example], totals: Totals) -> dict[str, Tensor]:
        # Every target weighs the same, so the head's gradient need not wait for the loss.
        logprobs_BT, _ = engine.module(batch, expected_grad=-1.0 / totals.targets)
        return {"loss": -logprobs_BT.sum() / totals.targets}

    evaluation = Trainer(job, engine, cursor, splits, loss, tokenizer.pad_token_id).run()
    finish(job, engine, splits, evaluation)
