"""KTO: each answer, of a pair or judged alone, is moved by itself, around a reference point.

That is how much likelier than under the reference the policy finds answers that belong to other prompts. The global batches of a run are known before it starts, so the
reference scores their mismatched pairs once, as it does the pairs; the policy scores them before each update.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from rlhf_core.batching.collate import ModelBatch, target_mask
from rlhf_core.batching.rows import TokenRow
from rlhf_core.collector import collector_off
from rlhf_core.engine.engine import TrainingEngine
from rlhf_core.objectives.preference import kto_loss, kto_reference
from rlhf_core.recipes.cursor import DataCursor
from rlhf_core.recipes.examples import Example, Splits
from rlhf_core.recipes.job import TrainingJob
from rlhf_core.recipes.loop import Totals, batch_of, plan_of_rank
from rlhf_core.recipes.reference import with_reference_logps
from rlhf_core.settings.preference import PreferenceConfig


def kto_totals(
    job: TrainingJob[PreferenceConfig], engine: TrainingEngine, cursor: DataCursor, splits: Splits, pad_id: int
) -> Callable[[Sequence[Example]], Totals]:
    """A function from a global batch of this run to its totals with KTO's reference point; calling it is collective.

    The engine must still hold the reference. Raises `PreemptedError` when asked to stop.
    """
    config = job.config
    batches = ([splits.train[i] for i in cursor.batch(step)] for step in range(cursor.total_steps))
    # Neighbours that meet again in another epoch are scored once.
    train = {pair.id: pair for batch in batches for pair in mismatched(batch, config.max_length_tokens)}
    validation = mismatched(splits.validation, config.max_length_tokens)
    scored = with_reference_logps(job, engine, Splits(list(train.values()), validation, n_dropped=0), pad_id)
    reference = {pair.id: pair.reference_logps for pair in [*scored.train, *scored.validation]}

    def totals(examples: Sequence[Example]) -> Totals:
        pairs = mismatched(examples, config.max_length_tokens)
        ratios = _log_ratios(engine, pairs, reference, config, pad_id)
        judged = [(row, good) for example in examples for row, good in zip(example.rows, example.are_desirable, strict=True)]
        n_desirable = sum(good for _, good in judged)
        return Totals(
            len(examples),
            sum(row.n_targets for row, good in judged if good),
            reference_point=kto_reference(ratios, engine.all_sum).item(),
            desirable=n_desirable,
            undesirable=len(judged) - n_desirable,
        )

    return totals


def kto_shares(
    config: PreferenceConfig, module: nn.Module, batch: ModelBatch, examples: Sequence[Example], totals: Totals
) -> dict[str, Tensor]:
    """A micro-batch's shares of the loss, the mean over R answers, and of the metrics.

    `rewards/chosen` and `rewards/rejected` are means over the desirable and the undesirable answers; `accuracy` is the share of
    answers on their side of the reference point.
    """
    logprobs_RT, _ = module(batch)
    logps_R, lengths_R = logprobs_RT.sum(1), target_mask(batch).sum(1)
    ref_logps_R = torch.tensor([logp for example in examples for logp in example.reference_logps], device=logps_R.device)
    good_R = torch.tensor(
        [good for example in examples for good in example.are_desirable], device=logps_R.device, dtype=torch.bool
    )
    losses_R = kto_loss(
        logps_R,
        ref_logps_R,
        good_R,
        logps_R.new_tensor(totals.reference_point),
        **{parameter: config.value(setting) for parameter, setting in config.row.reads.items()},
    )
    answers, beta = totals.desirable + totals.undesirable, config.value("beta")
    log_ratios_R = (logps_R - ref_logps_R).detach().double()
    chosen, rejected = (
        beta * log_ratios_R[side].sum() / max(n, 1) for side, n in ((good_R, totals.desirable), (~good_R, totals.undesirable))
    )
    nll = -logps_R[good_R].sum() / max(totals.targets, 1)
    return {
        "loss": losses_R.sum() / answers + config.value("nll_coef") * nll,
        "nll": nll,
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "margin": chosen - rejected,
        "accuracy": ((log_ratios_R > totals.reference_point) == good_R).double().sum() / answers,
        "log_ratio_per_token": (log_ratios_R / lengths_R).sum() / answers,
        "kl": log_ratios_R.new_tensor(totals.reference_point * len(good_R) / answers),
    }


def mismatched(examples: Sequence[Example], max_length_tokens: int) -> list[Example]:
    """The prompt of every example with the answers of the example before it; the first takes those of the last.

    Pairs with a row longer than `max_length_tokens` are left out. A single example has no other to take answers from.
    """
    if len(examples) < 2:
        return []
    givers = [examples[-1], *examples[:-1]]
    with collector_off():
        pairs = [_behind_prompt_of(taker, giver) for taker, giver in zip(examples, givers, strict=True)]
    return [pair for pair in pairs if max(map(len, pair.rows)) <= max_length_tokens]


def _behind_prompt_of(taker: Example, giver: Example) -> Example:
    prompt = taker.rows[0].ids[: taker.rows[0].prompt_length]
    return Example(f"{taker.id}<{giver.id}", tuple(_with_prompt(prompt, row) for row in giver.rows))


def _with_prompt(prompt: list[int], row: TokenRow) -> TokenRow:
    start = row.prompt_length
    return TokenRow([*prompt, *row.ids[start:]], [False] * len(prompt) + row.is_target[start:])


def _log_ratios(
    engine: TrainingEngine,
    pairs: Sequence[Example],
    reference: Mapping[str, tuple[float, ...]],
    config: PreferenceConfig,
    pad_id: int,
) -> Tensor:
    """Policy - reference log-probs (nats) of this rank's share of the answers in `pairs`, [n]; no gradient, no dropout."""
    ratios = [torch.empty(0, device=engine.device)]
    with engine.evaluating():
        for part in plan_of_rank(pairs, engine, config.engine):
            rows = [row for i in part for row in pairs[i].rows]
            logprobs_BT, _ = engine.module(batch_of(rows, engine, pad_id))
            ref_logps = [logp for i in part for logp in reference[pairs[i].id]]
            ratios.append(logprobs_BT.sum(1) - torch.tensor(ref_logps, device=engine.device))
    return torch.cat(ratios)
