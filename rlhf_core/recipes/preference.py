"""Preference optimisation: DPO and its kin widen the gap of a pair, KTO moves each answer by itself.

The reference is the model that training starts from. Its log-probs are computed once, before the first update, so no
second model is ever in memory; a method that needs none goes without that pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from data_processing.errors import ConfigError
from rlhf_core.batching.collate import ModelBatch, target_mask
from rlhf_core.batching.templates import Renderer
from rlhf_core.imported import imported
from rlhf_core.models.load import load_lm
from rlhf_core.models.modules import PolicyModule
from rlhf_core.objectives.preference import Pairs
from rlhf_core.recipes.cursor import plan_cursor
from rlhf_core.recipes.examples import Example, Splits, judged_answer, pair
from rlhf_core.recipes.job import TrainingJob
from rlhf_core.recipes.judgements import check_both_kinds
from rlhf_core.recipes.kto import kto_shares, kto_totals
from rlhf_core.recipes.loop import Totals, Trainer
from rlhf_core.recipes.reference import with_reference_logps
from rlhf_core.recipes.start import check_and_load_tokenizer, finish, load_examples, load_trainable, start_engine
from rlhf_core.settings.preference import PreferenceConfig


def train_preference(job: TrainingJob[PreferenceConfig]) -> None:
    """Train `job.model` on pairs, with method kto on single judged answers too; write the checkpoint. Runs on every rank alike.

    Raises `ConfigError`, `DataError`, `DivergedError` or `PreemptedError` (a checkpoint is saved).
    """
    config = job.config
    tokenizer = check_and_load_tokenizer(job)
    splits = _examples(job, Renderer(tokenizer))
    cursor = plan_cursor(config, splits.train, job.seed)

    policy = load_trainable(job, load_lm)
    engine = start_engine(job, PolicyModule(policy, config.engine.packing), cursor.total_steps)
    if config.row.needs_reference:
        # Before any checkpoint is loaded the policy still is the reference: fresh adapters change no output.
        splits = with_reference_logps(job, engine, splits, tokenizer.pad_token_id)
    learns_from_answers = config.row.learns_from == "answers"
    totals = kto_totals(job, engine, cursor, splits, tokenizer.pad_token_id) if learns_from_answers else Totals.of

    loss = partial(kto_shares, config, engine.module) if learns_from_answers else PairLoss.of(config, engine.module)
    evaluation = Trainer(job, engine, cursor, splits, loss, tokenizer.pad_token_id, totals).run()
    finish(job, engine, splits, evaluation)


def _examples(job: TrainingJob[PreferenceConfig], renderer: Renderer) -> Splits:
    """The tables that the method learns from: one that learns from answers takes what there is of the two, the others need pairs."""
    pairs, answers = job.data / "preference", job.data / "unpaired"
    if job.config.row.learns_from == "pairs" or not answers.is_dir():
        return load_examples(job, "preference", partial(pair, renderer))
    check_both_kinds(job.data)
    alone = load_examples(job, "unpaired", partial(judged_answer, renderer))
    if not pairs.is_dir():
        return alone
    return load_examples(job, "preference", partial(pair, renderer)) + alone


@dataclass(frozen=True)
class PairLoss:
    """A micro-batch of B pairs' shares of a method's loss, and of the metrics; the loss is `function` with its settings bound.

    The implicit reward of an answer is `scale` times its log-ratio to the reference, and without one times its log-prob a token.
    """

    function: Callable[[Pairs], Tensor]
    scale: float
    nll_coef: float
    needs_reference: bool
    module: nn.Module

    @classmethod
    def of(cls, config: PreferenceConfig, module: nn.Module) -> PairLoss:
        """The loss that the settings ask for. Raises `ConfigError` for a method of the user's whose loss is not there."""
        method = config.row
        function = imported(method.loss, "loss", "my_losses:my_loss")
        if not callable(function):
            raise ConfigError(f"method '{config.method}': there is no function {method.loss}")
        bound = partial(function, **{parameter: config.value(setting) for parameter, setting in method.reads.items()})
        scale = config.value("beta") if "beta" in method.settings else 1.0
        return cls(bound, scale, config.value("nll_coef"), method.needs_reference, module)

    def __call__(self, batch: ModelBatch, examples: Sequence[Example], totals: Totals) -> dict[str, Tensor]:
        """Columns are chosen and rejected."""
        logprobs_BT, _ = self.module(batch)
        chosen_B, rejected_B = _columns(logprobs_BT.sum(1))
        chosen_lengths_B, rejected_lengths_B = _columns(target_mask(batch).sum(1))
        reference = [e.reference_logps if self.needs_reference else (0.0, 0.0) for e in examples]
        reference_chosen_B, reference_rejected_B = _columns(torch.tensor(reference, device=chosen_B.device))
        pairs = Pairs(
            chosen=chosen_B,
            rejected=rejected_B,
            reference_chosen=reference_chosen_B,
            reference_rejected=reference_rejected_B,
            chosen_lengths=chosen_lengths_B,
            rejected_lengths=rejected_lengths_B,
            margins=torch.tensor([example.margin for example in examples], device=chosen_B.device),
        )
        nll = -chosen_B.sum() / totals.targets
        return {
            "loss": self.function(pairs).sum() / totals.examples + self.nll_coef * nll,
            "nll": nll,
            **{name: values_B.double().sum() / totals.examples for name, values_B in self._means(pairs).items()},
        }

    def _means(self, pairs: Pairs) -> dict[str, Tensor]:
        """What is told of the pairs beside the loss, [B] each, without gradient."""
        log_ratios = pairs.log_ratios if self.needs_reference else pairs.mean_logps
        chosen_B, rejected_B = (self.scale * values_B.detach() for values_B in log_ratios)
        means = {
            "rewards/chosen": chosen_B,
            "rewards/rejected": rejected_B,
            "margin": chosen_B - rejected_B,
            "accuracy": chosen_B > rejected_B,
        }
        if self.needs_reference:
            chosen_B, rejected_B = (values_B.detach() for values_B in pairs.log_ratios)
            means["log_ratio_per_token"] = (chosen_B / pairs.chosen_lengths + rejected_B / pairs.rejected_lengths) / 2
        return means


def _columns(values: Tensor) -> tuple[Tensor, Tensor]:
    """Those of the chosen and of the rejected rows, which take turns."""
    chosen, rejected = values.view(-1, 2).unbind(1)
    return chosen, rejected
