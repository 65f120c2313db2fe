"""Preference optimisation against a reference: DPO and its kin widen the gap of a pair, KTO moves each answer by itself.

The reference is the model that training starts from. Its log-probs are computed once, before the first update, so no
second model is ever in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from rlhf_core.batching.collate import ModelBatch, target_mask
from rlhf_core.batching.templates import Renderer
from rlhf_core.config import PreferenceConfig, PreferenceMethod
from rlhf_core.models.load import load_lm
from rlhf_core.models.modules import PolicyModule
from rlhf_core.objectives.preference import PreferenceKind, preference_loss
from rlhf_core.recipes.cursor import plan_cursor
from rlhf_core.recipes.examples import Example, Splits, judged_answer, pair
from rlhf_core.recipes.job import TrainingJob
from rlhf_core.recipes.kto import kto_shares, kto_totals
from rlhf_core.recipes.loop import Totals, Trainer
from rlhf_core.recipes.reference import with_reference_logps
from rlhf_core.recipes.start import check_and_load_tokenizer, finish, load_examples, load_trainable, start_engine

# A method is a loss on pairs; cdpo is dpo with label smoothing, which the settings ask for. KTO alone knows no pairs.
PAIR_METHODS: Mapping[PreferenceMethod, PreferenceKind] = {
    PreferenceMethod.dpo: "sigmoid",
    PreferenceMethod.cdpo: "sigmoid",
    PreferenceMethod.robust: "robust",
    PreferenceMethod.hinge: "hinge",
    PreferenceMethod.ipo: "ipo",
    PreferenceMethod.ipo_sum: "ipo_sum",
}


def train_preference(job: TrainingJob[PreferenceConfig]) -> None:
    """Train `job.model` on pairs, with method kto on single judged answers too; write the checkpoint. Runs on every rank alike.

    Raises `ConfigError`, `DataError`, `DivergedError` or `PreemptedError` (a checkpoint is saved).
    """
    config = job.config
    tokenizer = check_and_load_tokenizer(job)
    splits = _examples(job, Renderer(tokenizer))
    cursor = plan_cursor(len(splits.train), config.batch_size, config.epochs, config.max_steps, job.seed)

    policy = load_trainable(job, load_lm)
    engine = start_engine(job, PolicyModule(policy, config.engine.packing), cursor.total_steps)
    # Before any checkpoint is loaded the policy still is the reference: fresh adapters change no output.
    splits = with_reference_logps(job, engine, splits, tokenizer.pad_token_id)
    is_kto = config.method is PreferenceMethod.kto
    totals = kto_totals(job, engine, cursor, splits, tokenizer.pad_token_id) if is_kto else Totals.of

    loss = partial(kto_shares if is_kto else _shares, config, engine.module)
    evaluation = Trainer(job, engine, cursor, splits, loss, tokenizer.pad_token_id, totals).run()
    finish(job, engine, splits, evaluation)


def _examples(job: TrainingJob[PreferenceConfig], renderer: Renderer) -> Splits:
    """The tables that the method learns from: KTO takes what there is of the two, the others need pairs."""
    pairs, answers = job.data / "preference", job.data / "unpaired"
    if job.config.method is not PreferenceMethod.kto or not answers.is_dir():
        return load_examples(job, "preference", partial(pair, renderer))
    alone = load_examples(job, "unpaired", partial(judged_answer, renderer))
    if not pairs.is_dir():
        return alone
    return load_examples(job, "preference", partial(pair, renderer)) + alone


def _shares(
    config: PreferenceConfig, module: nn.Module, batch: ModelBatch, examples: Sequence[Example], totals: Totals
) -> dict[str, Tensor]:
    """A micro-batch of B pairs' shares of the loss and the metrics; columns are chosen and rejected."""
    logprobs_BT, _ = module(batch)
    logps_B2, lengths_B2 = (values_BT.sum(1).view(-1, 2) for values_BT in (logprobs_BT, target_mask(batch)))
    ref_logps_B2 = torch.tensor([example.reference_logps for example in examples], device=logps_B2.device).view(-1, 2)
    losses_B = preference_loss(
        *logps_B2.unbind(1),
        *ref_logps_B2.unbind(1),
        chosen_lengths=lengths_B2[:, 0],
        rejected_lengths=lengths_B2[:, 1],
        kind=PAIR_METHODS[config.method],
        beta=config.beta,
        label_smoothing=config.label_smoothing,
    ).losses
    log_ratios_B2 = (logps_B2 - ref_logps_B2).detach()
    chosen_B, rejected_B = (config.beta * log_ratios_B2).unbind(1)
    means = {
        "rewards/chosen": chosen_B,
        "rewards/rejected": rejected_B,
        "margin": chosen_B - rejected_B,
        "accuracy": chosen_B > rejected_B,
        "log_ratio_per_token": (log_ratios_B2 / lengths_B2).mean(1),
    }
    nll = -logps_B2[:, 0].sum() / totals.targets
    return {
        "loss": losses_B.sum() / totals.examples + config.nll_coef * nll,
        "nll": nll,
        **{name: values_B.double().sum() / totals.examples for name, values_B in means.items()},
    }
