"""One round's responses: how they are laid out, cut into mini-batches and kept."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from torch import Tensor

from data_processing.schemas import to_table, write_table
from rlhf_core.batching.balance import order
from rlhf_core.batching.rows import TokenRow
from rlhf_core.batching.templates import Renderer
from rlhf_core.cluster.actors import MiniBatch, Totals
from rlhf_core.cluster.rollout_actor import Sampled
from rlhf_core.recipes.prompts import Prompt, scored_response
from rlhf_core.rewards.base import CreditedUnit, ScoredResponse
from rlhf_core.rewards.compose import Rewards
from rlhf_core.rollout.base import Generation

# Responses of a run that its report shows in full.
_SHOWN = 6


def mini_batch_plan(n_rows: int, samples: int, *, passes: int, mini_batches: int, seed: int, step: int) -> list[list[int]]:
    """Row numbers of each optimizer step of a round: every pass uses each row once, in a seeded order.

    With one mini-batch rows keep their order. Otherwise groups of `samples` rows (a prompt's) are shuffled, whole where
    mini-batches hold whole ones, so that what a prompt's responses share can be computed once.
    """
    size = n_rows // mini_batches
    group = samples if size % samples == 0 else 1
    plan: list[list[int]] = []
    for update in range(passes):
        groups = order(n_rows // group, seed, step * passes + update) if mini_batches > 1 else list(range(n_rows // group))
        rows = [g * group + i for g in groups for i in range(group)]
        plan += [rows[i : i + size] for i in range(0, n_rows, size)]
    return plan


def mini_batches(
    plan: Sequence[Sequence[int]], rows: Sequence[TokenRow], has_gradient: Sequence[bool] | None = None, *, first_step: int = 0
) -> list[MiniBatch]:
    """The plan with its denominators, those of all rows; rows, and mini-batches, without a gradient are left out.

    The first of the plan is optimizer step `first_step` of the run, and those left out count: the schedule goes by the plan.
    """

    def tokens(numbers: Sequence[int]) -> float:
        return float(sum(rows[i].n_targets for i in numbers))

    kept = [[i for i in numbers if has_gradient is None or has_gradient[i]] for numbers in plan]
    numbered = enumerate(zip(plan, kept, strict=True), start=first_step)
    return [MiniBatch(part, Totals(tokens(whole), len(whole), tokens(part)), step) for step, (whole, part) in numbered if part]


@dataclass(frozen=True)
class Rollouts:
    """One round: B responses, those to one prompt next to each other. Tensors are [B, T], 0 beyond `mask`.

    T counts the tokens that are learnt from, left-aligned: those of a generation that its mask leaves out have no column.
    `seconds` is how long drawing them took, `n_drawn` how many were drawn for them.
    """

    prompts: list[Prompt]
    generations: list[Generation]
    responses: list[ScoredResponse]
    rows: list[TokenRow]
    mask: Tensor
    sampler_logprobs: Tensor
    seconds: float
    n_drawn: int

    @classmethod
    def of(
        cls,
        prompts: list[Prompt],
        generations: list[Generation],
        responses: list[ScoredResponse],
        seconds: float,
        n_drawn: int | None = None,
    ) -> Rollouts:
        """Responses and their prompts, one each, laid out."""
        learnt = [generation.is_learnt for generation in generations]
        mask = torch.zeros(len(generations), max(map(sum, learnt)))
        logprobs = torch.zeros_like(mask)
        for i, (generation, columns) in enumerate(zip(generations, learnt, strict=True)):
            kept = [logprob for logprob, is_kept in zip(generation.logprobs, columns, strict=True) if is_kept]
            if generation.trajectory is not None and not generation.trajectory.turn_ends:
                continue  # the environment failed before anything was drawn
            logprobs[i, : len(kept)] = torch.tensor(kept)
            mask[i, : len(kept)] = 1.0
        rows = [
            TokenRow([*p.ids, *g.response_ids], [False] * len(p.ids) + columns)
            for p, g, columns in zip(prompts, generations, learnt, strict=True)
        ]
        n_drawn = len(generations) if n_drawn is None else n_drawn
        return cls(prompts, generations, responses, rows, mask, logprobs, seconds, n_drawn)

    def with_rows(self, numbers: Sequence[int], others: Rollouts) -> Rollouts:
        """The same with the responses of these numbers replaced by `others`, in their order."""

        def placed(own: list[Any], theirs: list[Any]) -> list[Any]:
            changed = dict(zip(numbers, theirs, strict=True))
            return [changed.get(i, value) for i, value in enumerate(own)]

        return Rollouts.of(
            placed(self.prompts, others.prompts),
            placed(self.generations, others.generations),
            placed(self.responses, others.responses),
            self.seconds + others.seconds,
            self.n_drawn + others.n_drawn,
        )

    def at_learnt_tokens(self, values: Sequence[Sequence[float] | None]) -> Tensor:
        """[B, T] from one value a token of each response (None: none): what a token earns that is not learnt, the one before gets."""
        laid = torch.zeros_like(self.mask)
        for i, (generation, own) in enumerate(zip(self.generations, values, strict=True)):
            column = -1
            for value, is_learnt in zip(own or (), generation.is_learnt, strict=own is not None):
                column += is_learnt
                laid[i, max(column, 0)] += value
        return laid

    @property
    def turn_ends(self) -> Tensor | None:
        """[B, T], 1 at the last token of each of the model's turns; None where responses are one turn each."""
        if all(generation.trajectory is None for generation in self.generations):
            return None
        laid = torch.zeros_like(self.mask)
        for i, generation in enumerate(self.generations):
            learnt = generation.is_learnt
            for place in generation.trajectory.turn_ends if generation.trajectory else ():
                laid[i, sum(learnt[:place])] = 1.0
        return laid

    @property
    def failed(self) -> list[bool]:
        """The responses whose environment failed: they are invalid, whatever rewards say of them."""
        return [g.trajectory is not None and g.trajectory.failure is not None for g in self.generations]

    @property
    def truncated_share(self) -> float:
        """Share of responses that were cut before they ended."""
        return sum(g.finish_reason == "length" for g in self.generations) / len(self.generations)


def collect_rollouts(prompts: Sequence[Prompt], sampled: Sampled, renderer: Renderer, step: int) -> Rollouts:
    """Lay out what the sampler gave in round `step` (from 0): `sampled.groups[p]` are the responses to `prompts[p]`."""
    pairs = [(prompt, generation) for prompt, group in zip(prompts, sampled.groups, strict=True) for generation in group]
    return Rollouts.of(
        [prompt for prompt, _ in pairs],
        [generation for _, generation in pairs],
        [scored_response(prompt, generation, renderer.tokenizer, step) for prompt, generation in pairs],
        sampled.seconds,
    )


def write_rollouts(
    path: Path, step: int, rollouts: Rollouts, rewards: Rewards, units: Sequence[Sequence[CreditedUnit] | None] = ()
) -> None:
    """Keep a round as a `rollouts` table, with what its responses are worth and, where credit was spread, their units: `units`, or those that
    a source told. `step` counts from 1.

    A response without a reward has none in the table, and a source that gave it none, or NaN, has none there.
    """
    total, by_source = rewards.worth, rewards.by_source
    told = [own or [] for own in units or rewards.units]
    samples_per_prompt = {prompt.id: 0 for prompt in rollouts.prompts}
    rows = []
    for i, (prompt, generation) in enumerate(zip(rollouts.prompts, rollouts.generations, strict=True)):
        rows.append(
            {
                "prompt_id": prompt.id,
                "step": step,
                "sample": samples_per_prompt[prompt.id],
                "weight_version": generation.weight_version,
                "prompt_ids": prompt.ids,
                "response_ids": generation.response_ids,
                "logprobs": generation.logprobs,
                "rewards": [(name, _finite(values[i])) for name, values in by_source.items()],
                "reward": total[i],
                "length_tokens": len(generation.response_ids),
                "finish_reason": generation.finish_reason,
                "learnt": generation.learnt,
                "trajectory": None if generation.trajectory is None else json.dumps(asdict(generation.trajectory)),
                "units": [asdict(unit) for unit in told[i]] if told else None,
            }
        )
        samples_per_prompt[prompt.id] += 1
    write_table("rollouts", to_table("rollouts", rows), path)


def rows_to_show(folder: Path, wanted: str, *columns: str) -> list[dict[str, Any]]:
    """A few rows of the last round that is kept in a folder, of different prompts: those that have the column `wanted`, with these further ones."""
    table = pq.read_table(max(folder.glob("step-*.parquet")), columns=["prompt_id", wanted, *columns])
    rows = [row for row in table.to_pylist() if row[wanted]]
    return list({row["prompt_id"]: row for row in reversed(rows)}.values())[:_SHOWN]


def _finite(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value
