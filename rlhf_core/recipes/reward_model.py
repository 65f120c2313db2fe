"""Reward model: a scalar head on a language model, trained so that the chosen response scores above the rejected one.

The score is read at the last token, the one that ends the assistant turn: it is where the whole response has been seen,
and a sampled response that stops ends in the same token. A process reward model has a score at the end of each step, the log-odds
that the step is right; that of the last is read at the same token. One of segments has a reward at the end of each (`segment_reward`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from rlhf_core.batching.collate import ModelBatch, target_mask
from rlhf_core.batching.templates import Renderer
from rlhf_core.models.load import load_scorer
from rlhf_core.models.modules import ScoreModule
from rlhf_core.objectives.reward import pairwise_reward_loss, step_reward_loss
from rlhf_core.recipes.cursor import plan_cursor
from rlhf_core.recipes.examples import Example, Splits, pair, steps
from rlhf_core.recipes.job import TrainingJob
from rlhf_core.recipes.loop import Loss, Totals, Trainer
from rlhf_core.recipes.segment_reward import in_segments, leave_reading, of_segments
from rlhf_core.recipes.start import check_and_load_tokenizer, finish, load_examples, load_trainable, start_engine
from rlhf_core.settings.supervised import RewardModelConfig


def train_reward_model(job: TrainingJob[RewardModelConfig]) -> None:
    """Train a score head (and adapters) on the preference or the stepwise table and write the checkpoint artifact; runs on every rank.

    The summary has `score_mean` and `score_std` of the validation responses, for people who normalise by them. Raises `ConfigError`, `DataError`,
    `DivergedError` or `PreemptedError` (a checkpoint is saved).
    """
    config = job.config
    tokenizer = check_and_load_tokenizer(job)
    renderer = Renderer(tokenizer)
    splits = _examples(job, renderer)
    cursor = plan_cursor(config, splits.train, job.seed)

    scorer = load_trainable(job, partial(load_scorer, new_head=True))
    engine = start_engine(job, ScoreModule(scorer, config.engine.packing), cursor.total_steps)

    if config.granularity == "segment":
        splits = in_segments(job, engine, splits, renderer)
    shares: dict[str, Loss] = {
        "answer": partial(_of_pairs, engine.module, config),
        "step": partial(_of_steps, engine.module),
        "segment": partial(of_segments, engine.module, config),
    }
    evaluation = Trainer(job, engine, cursor, splits, shares[config.granularity], tokenizer.pad_token_id).run()
    if config.granularity == "segment":
        facts = leave_reading(job, engine, splits, evaluation, tokenizer.pad_token_id)
    else:
        facts = _score_statistics(evaluation)
    finish(job, engine, splits, evaluation | facts)


def _examples(job: TrainingJob[RewardModelConfig], renderer: Renderer) -> Splits:
    if job.config.granularity == "step":
        return load_examples(job, "stepwise", partial(steps, renderer, separator=job.config.step_separator))
    return load_examples(job, "preference", partial(pair, renderer))


def _of_pairs(
    module: nn.Module, config: RewardModelConfig, batch: ModelBatch, examples: Sequence[Example], totals: Totals
) -> dict[str, Tensor]:
    """A micro-batch of B pairs' shares of the loss and of the metrics."""
    chosen_B, rejected_B = module(batch).view(-1, 2).unbind(1)
    margin_B = torch.tensor([example.margin for example in examples], device=chosen_B.device)
    ranking_B = pairwise_reward_loss(chosen_B, rejected_B, margin_B)
    centering_B = (chosen_B + rejected_B).square()
    shares_B = {
        "loss": ranking_B + config.center_coef * centering_B,
        "accuracy": (chosen_B > rejected_B).float(),
        "margin": chosen_B - rejected_B,
        "score_mean": (chosen_B + rejected_B) / 2,
        "score_square": (chosen_B.square() + rejected_B.square()) / 2,
    }
    return {name: values_B.double().sum() / totals.examples for name, values_B in shares_B.items()}


def _of_steps(module: nn.Module, batch: ModelBatch, examples: Sequence[Example], totals: Totals) -> dict[str, Tensor]:
    """A micro-batch's shares of the mean loss over N steps, and of the metrics; `accuracy` is the share of steps judged as labelled."""
    scores_BT, ends_BT = module(batch, per_token=True, at_targets=True), target_mask(batch)
    labels = [label for example in examples for label in example.labels]
    labels_N = torch.tensor(labels, dtype=torch.bool, device=scores_BT.device)
    scores_N = scores_BT[ends_BT]
    shares_N = {
        "loss": step_reward_loss(scores_N, labels_N),
        "accuracy": ((scores_N > 0) == labels_N).float(),
        "right": labels_N.float(),
        "score_mean": scores_N,
        "score_square": scores_N.square(),
    }
    return {name: values_N.double().sum() / totals.targets for name, values_N in shares_N.items()}


def _score_statistics(evaluation: dict[str, float]) -> dict[str, float]:
    """Mean and standard deviation of the validation scores, shown with the stage; empty without validation."""
    if not evaluation:
        return {}
    mean = evaluation["eval_score_mean"]
    return {"score_mean": mean, "score_std": math.sqrt(max(evaluation["eval_score_square"] - mean**2, 0.0))}
