"""What a reward model of segments is trained on and leaves: segments by the entropy of the model that it starts from, a score at the end
of each, and the fit of their rewards by position.

Source: segment_reward.md 2 to 6.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import accumulate, pairwise
from pathlib import Path
from statistics import fmean, stdev

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from data_processing.errors import DivergedError
from rlhf_core.batching.collate import ModelBatch, collate, target_mask
from rlhf_core.batching.rows import TokenRow
from rlhf_core.batching.sharing import plan_rows
from rlhf_core.batching.templates import Renderer
from rlhf_core.collector import collector_off
from rlhf_core.credit.positions import PositionFit, bins, fit, kept_positions, position_counts, with_params
from rlhf_core.credit.reading import OWN_FIT, PARAMS_NAME, Reading, spans_of, write_reading
from rlhf_core.engine.engine import TrainingEngine
from rlhf_core.models.load import load_lm
from rlhf_core.models.modules import PolicyModule
from rlhf_core.objectives.reward import credit_entropy, pairwise_reward_loss
from rlhf_core.recipes.examples import Example, Splits
from rlhf_core.recipes.job import TrainingJob
from rlhf_core.recipes.loop import Totals, batch_of, plan_of_rank, stop_if_requested
from rlhf_core.recipes.reference import numbers_key
from rlhf_core.settings.segments import SegmentSettings
from rlhf_core.settings.supervised import RewardModelConfig

_LEAST_STD = 1e-8


def in_segments(job: TrainingJob[RewardModelConfig], engine: TrainingEngine, splits: Splits, renderer: Renderer) -> Splits:
    """The same pairs with a target at the last token of each segment, which is where its reward is read."""
    examples = [*splits.train, *splits.validation]
    rows = [row for example in examples for row in example.rows]
    entropies = iter(_entropies(job, engine, examples, rows, renderer.tokenizer.pad_token_id))
    settings = job.config.segment
    with collector_off():
        cut = [
            replace(example, rows=tuple(_read_at_ends(row, next(entropies), settings, renderer) for row in example.rows))
            for example in examples
        ]
    # What could not be fitted is told before it is trained on.
    n_segments = Counter(row.n_targets for example in cut[: len(splits.train)] for row in example.rows)
    kept_positions(position_counts(n_segments), settings.fit_min_count)
    return replace(splits, train=cut[: len(splits.train)], validation=cut[len(splits.train) :])


def _read_at_ends(row: TokenRow, entropy: Sequence[float], settings: SegmentSettings, renderer: Renderer) -> TokenRow:
    places = [place for place, is_target in enumerate(row.is_target) if is_target]  # other turns may stand between
    response = [token for token, is_target in zip(row.ids, row.is_target, strict=True) if is_target]
    spans = spans_of(settings, entropy, response, renderer.stop_ids, renderer.tokenizer)
    return TokenRow.read_at(row.ids, [places[end - 1] for _, end in spans])


def _entropies(
    job: TrainingJob[RewardModelConfig],
    engine: TrainingEngine,
    examples: Sequence[Example],
    rows: Sequence[TokenRow],
    pad_id: int,
) -> list[list[float]]:
    """Of each row's targets, nats: of the frozen model that training starts from. Kept beside the checkpoints once they are all known."""
    starts = [0, *accumulate(row.n_targets for row in rows)]
    path = job.resume / f"entropies-{numbers_key(job, examples)[:16]}.safetensors"
    known = torch.full((starts[-1],), torch.nan)
    if engine.rank == 0:
        known = _read(path, known)
    else:
        known.zero_()
    known = engine.all_sum(known.to(engine.device))
    if known.isnan().any():
        known = engine.all_sum(_computed(job, engine, rows, starts, pad_id))
        if not known.isfinite().all():
            raise DivergedError(
                f"entropies of {job.model} are not finite: its weights or arithmetic are broken; try dtype 'fp32'"
            )
        if engine.rank == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(path.name + ".part")
            save_file({"entropies": known.cpu()}, part)
            part.rename(path)
    values = known.tolist()
    return [values[start:end] for start, end in pairwise(starts)]


def _read(path: Path, nothing: Tensor) -> Tensor:
    """The numbers in `path`; `nothing` where it is not there or not whole, in which case they are computed again."""
    try:
        found = load_file(path)["entropies"]
    except (OSError, KeyError, SafetensorError):
        return nothing
    return found if found.shape == nothing.shape else nothing


@torch.no_grad()
def _computed(
    job: TrainingJob[RewardModelConfig], engine: TrainingEngine, rows: Sequence[TokenRow], starts: Sequence[int], pad_id: int
) -> Tensor:
    """This rank's share, zeros elsewhere. The whole model is loaded on each rank for it."""
    settings = job.config.engine
    model = load_lm(job.model, dtype=settings.precision, attention=settings.attention, trust_remote_code=job.trust_remote_code)
    module = PolicyModule(model.to(engine.device), settings.packing).eval()
    # Ranks plan alike, so they have to lay out alike.
    able = torch.tensor([float(module.layouts.packed), float(module.layouts.shared)], device=engine.device)
    packed, shared = (engine.all_sum(able) == engine.world_size).tolist()
    plan = plan_rows(rows, settings.micro_batch_tokens, engine.world_size, packed=packed, shared=shared)[engine.rank]
    found = torch.zeros(starts[-1], device=engine.device)
    for done, indices in enumerate(plan):
        stop_if_requested(engine, job.resume)
        if engine.rank == 0:
            job.events.progress(done, len(plan), f"entropies of {len(rows)} responses: micro-batch {done + 1} of {len(plan)}")
        if not indices:
            continue
        part = [rows[i] for i in indices]
        batch = collate(part, pad_id=pad_id, packed=packed, shared=shared).to(engine.device)
        _, entropies_RT = module(batch, with_entropy=True, entropy_has_grad=False)
        assert entropies_RT is not None
        for i, own in zip(indices, entropies_RT, strict=True):
            found[starts[i] : starts[i + 1]] = own[: rows[i].n_targets].float()
    return found


def of_segments(
    module: nn.Module, config: RewardModelConfig, batch: ModelBatch, examples: Sequence[Example], totals: Totals
) -> dict[str, Tensor]:
    """A micro-batch of B pairs' shares of the loss and of the metrics; K segments a row."""
    rewards_RK, mask_RK = module(batch, per_token=True, at_targets=True), target_mask(batch)
    evaluations_R = (rewards_RK * mask_RK).sum(1) / mask_RK.sum(1).clamp(min=1)
    chosen_B, rejected_B = evaluations_R.view(-1, 2).unbind(1)
    margin_B = torch.tensor([example.margin for example in examples], device=chosen_B.device)
    ranking_B = pairwise_reward_loss(chosen_B, rejected_B, margin_B)
    settings = config.segment
    entropy_R = credit_entropy(rewards_RK, mask_RK, tau=settings.credit_tau)
    spread_R = (
        credit_entropy(rewards_RK, mask_RK, tau=settings.credit_tau, by_log_k=True) if settings.normalize_by_log_k else entropy_R
    )
    shares_B = {
        "loss": ranking_B - settings.entropy_coef * spread_R.view(-1, 2).mean(1) if settings.entropy_coef else ranking_B,
        "ranking_loss": ranking_B,
        "credit_entropy": spread_R.view(-1, 2).mean(1),
        "effective_segments": entropy_R.exp().view(-1, 2).mean(1),
        "accuracy": (chosen_B > rejected_B).float(),
        "margin": chosen_B - rejected_B,
        "score_chosen": chosen_B,
        "score_rejected": rejected_B,
        "score_mean": (chosen_B + rejected_B) / 2,
        "score_square": (chosen_B.square() + rejected_B.square()) / 2,
        "segments_chosen": mask_RK.sum(1)[0::2].float(),
        "segments_rejected": mask_RK.sum(1)[1::2].float(),
    }
    return {name: values_B.double().sum() / totals.examples for name, values_B in shares_B.items()}


def leave_reading(
    job: TrainingJob[RewardModelConfig], engine: TrainingEngine, splits: Splits, evaluation: dict[str, float], pad_id: int
) -> dict[str, float]:
    """Fit the rewards of training segments by position, and write what reads the model later into the artifact; facts about it."""
    settings = job.config.segment
    pairs = splits.train
    if settings.fit_pairs < len(pairs):
        pairs = random.Random(job.seed).sample(pairs, settings.fit_pairs)
    rewards = _segment_rewards(job, engine, pairs, pad_id)
    found = bins(rewards)
    mean_line, std_line = fit(found, min_count=settings.fit_min_count, weight_by_count=settings.fit_weight_by_count)
    mean, std = _scores(evaluation, 2 * len(splits.validation)) if evaluation else _spread([fmean(own) for own in rewards])
    if engine.rank == 0:
        lines = {"mean": asdict(mean_line), "std": asdict(std_line)}
        reading = Reading(
            threshold_nats=settings.threshold_nats,
            segment_from=settings.segment_from,
            mean=mean,
            std=std,
            positions=found.to_json(),
            lines=lines,
        )
        own = PositionFit(mean_line.w, std_line.w, mean_line.b, std_line.b)
        write_reading(job.output, reading, with_params(job.output / PARAMS_NAME, OWN_FIT, settings.threshold_nats, own))
    return {
        "score_mean": mean,
        "score_std": std,
        "segments": fmean(row.n_targets for example in splits.train for row in example.rows),
        "fit_mean_r2": mean_line.r2,
        "fit_std_r2": std_line.r2,
    }


def _segment_rewards(
    job: TrainingJob[RewardModelConfig], engine: TrainingEngine, pairs: Sequence[Example], pad_id: int
) -> list[list[float]]:
    """Of each row, by the weights that stay."""
    starts = [0, *accumulate(row.n_targets for example in pairs for row in example.rows)]
    found = torch.zeros(starts[-1], device=engine.device)
    with engine.averaged(), engine.evaluating():
        plan = plan_of_rank(pairs, engine, job.config.engine)
        for done, indices in enumerate(plan):
            # Nobody is asked whether to stop: what is trained is not kept yet, and this is quicker than training.
            if engine.rank == 0:
                job.events.progress(done, len(plan), f"rewards of segments by position: micro-batch {done + 1} of {len(plan)}")
            numbers = [2 * i + side for i in indices for side in range(2)]
            rows = [row for i in indices for row in pairs[i].rows]
            values_RK = engine.module(batch_of(rows, engine, pad_id), per_token=True, at_targets=True)
            for number, row, own in zip(numbers, rows, values_RK, strict=True):
                found[starts[number] : starts[number + 1]] = own[: row.n_targets].float()
    values = engine.all_sum(found).tolist()
    return [values[start:end] for start, end in pairwise(starts)]


def _scores(evaluation: dict[str, float], count: int) -> tuple[float, float]:
    mean = evaluation["eval_score_mean"]
    spread = max(evaluation["eval_score_square"] - mean**2, 0.0) * count / max(count - 1, 1)
    return mean, max(math.sqrt(spread), _LEAST_STD)


def _spread(values: Sequence[float]) -> tuple[float, float]:
    mean = fmean(values)
    return mean, max(stdev(values), _LEAST_STD)
