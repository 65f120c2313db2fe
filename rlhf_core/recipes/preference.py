"""Direct preference optimisation and its kin: widen the gap between chosen and rejected, measured against a reference.

The reference is the model that training starts from. Its log-probs are computed once, before the first update, so no
second model is ever in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from rlhf_core.batching.collate import ModelBatch, target_mask
from rlhf_core.batching.templates import Renderer
from rlhf_core.config import PreferenceConfig, PreferenceMethod
from rlhf_core.engine.engine import TrainingEngine
from rlhf_core.models.load import load_lm
from rlhf_core.models.modules import PolicyModule
from rlhf_core.objectives.preference import PreferenceKind, preference_loss
from rlhf_core.recipes.cursor import plan_cursor
from rlhf_core.recipes.examples import Example, pair
from rlhf_core.recipes.job import TrainingJob
from rlhf_core.recipes.loop import Totals, Trainer
from rlhf_core.recipes.reference import with_reference_logps
from rlhf_core.recipes.start import check_and_load_tokenizer, finish, load_examples, load_trainable

# A method is a loss; cdpo is dpo with label smoothing, which the settings ask for.
METHODS: Mapping[PreferenceMethod, PreferenceKind] = {
    PreferenceMethod.dpo: "sigmoid",
    PreferenceMethod.cdpo: "sigmoid",
    PreferenceMethod.robust: "robust",
    PreferenceMethod.hinge: "hinge",
    PreferenceMethod.ipo: "ipo",
    PreferenceMethod.ipo_sum: "ipo_sum",
}


def train_preference(job: TrainingJob[PreferenceConfig]) -> None:
    """Train `job.model` on the preference table and write the checkpoint artifact; runs on every rank alike.

    Raises `ConfigError`, `DataError`, `DivergedError` or `PreemptedError` (a checkpoint is saved).
    """
    config = job.config
    tokenizer = check_and_load_tokenizer(job)
    splits = load_examples(job, "preference", partial(pair, Renderer(tokenizer)))
    cursor = plan_cursor(len(splits.train), config.batch_size, config.epochs, config.max_steps, job.seed)

    policy = load_trainable(job, load_lm)
    engine = TrainingEngine(
        PolicyModule(policy), optimizer=config.optimizer, engine=config.engine, total_steps=cursor.total_steps
    )
    # Before any checkpoint is loaded the policy still is the reference: fresh adapters change no output.
    splits = with_reference_logps(job, engine, splits, tokenizer.pad_token_id)

    def loss(batch: ModelBatch, examples: Sequence[Example], totals: Totals) -> dict[str, Tensor]:
        logprobs_BT, _ = engine.module(batch)
        chosen, rejected = logprobs_BT.sum(1).view(-1, 2).unbind(1)
        chosen_lengths, rejected_lengths = target_mask(batch).sum(1).view(-1, 2).unbind(1)
        references = torch.tensor([example.reference_logps for example in examples], device=chosen.device)
        ref_chosen, ref_rejected = references.view(-1, 2).unbind(1)
        result = preference_loss(
            chosen,
            rejected,
            ref_chosen,
            ref_rejected,
            chosen_lengths=chosen_lengths,
            rejected_lengths=rejected_lengths,
            kind=METHODS[config.method],
            beta=config.beta,
            label_smoothing=config.label_smoothing,
        )
        nll = -chosen.sum() / totals.targets
        log_ratios = (chosen - ref_chosen) / chosen_lengths + (rejected - ref_rejected) / rejected_lengths
        means = {
            "rewards/chosen": result.chosen_rewards,
            "rewards/rejected": result.rejected_rewards,
            "margin": result.chosen_rewards - result.rejected_rewards,
            "accuracy": result.accuracy,
            "log_ratio_per_token": log_ratios / 2,
        }
        return {
            "loss": result.losses.sum() / totals.examples + config.nll_coef * nll,
            "nll": nll,
            **{name: values_B.double().sum() / totals.examples for name, values_B in means.items()},
        }

    evaluation = Trainer(job, engine, cursor, splits, loss, tokenizer.pad_token_id).run()
    finish(job, engine, splits, evaluation)
