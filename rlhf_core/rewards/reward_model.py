"""A trained reward model as a reward: the score at the last token of prompt and response."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from data_processing.errors import ConfigError, DivergedError
from rlhf_core.batching.rows import TokenRow
from rlhf_core.device import device_for
from rlhf_core.models.hiding import can_hide
from rlhf_core.models.load import load_scorer, same_tokens
from rlhf_core.models.modules import ScoreModule
from rlhf_core.models.passes import Tell, passes
from rlhf_core.precision import Dtype
from rlhf_core.rewards.base import ScoredResponse
from rlhf_core.settings.training import Packing

if TYPE_CHECKING:
    from rlhf_core.rewards.build import Around


class ModelScorer:
    """A trained scorer that reads the very token ids that were sampled, so it must share the policy's vocabulary.

    `micro_batch_tokens` bounds one forward pass; with `gpus` above 0 it runs on a GPU. Raises `ConfigError` where the vocabularies differ.
    """

    def __init__(
        self,
        model: Path,
        policy_model: Path,
        *,
        dtype: Dtype,
        attention: str,
        micro_batch_tokens: int,
        packing: Packing,
        gpus: float = 0.0,
        trust_remote_code: bool = False,
    ) -> None:
        if not same_tokens(model, policy_model, trust_remote_code=trust_remote_code):
            raise ConfigError(
                f"reward model {model} and policy {policy_model} have different vocabularies: train the reward model from the same base"
            )
        scorer = load_scorer(model, dtype=dtype, attention=attention, trust_remote_code=trust_remote_code, new_head=False)
        self._device = device_for(gpus)
        self._module = ScoreModule(scorer.to(self._device), packing).eval()
        self._micro_batch_tokens = micro_batch_tokens

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines for people on how its batches are laid out."""
        notes: tuple[str, ...] = self._module.layouts.notes
        return notes

    @torch.inference_mode()
    def values(self, rows: Sequence[TokenRow], tell: Tell, *, per_target: bool) -> list[list[float]]:
        """The raw score of each row at its last token, or with `per_target` one at each of its targets."""
        values: list[list[float]] = [[] for _ in rows]
        for indices, batch in passes(rows, self._module.layouts, self._micro_batch_tokens, self._device, tell):
            scores = _checked(self._module(batch, per_token=per_target, at_targets=per_target).float()).view(len(indices), -1)
            for i, found in zip(indices, scores.tolist(), strict=True):
                values[i] = found[: rows[i].n_targets if per_target else 1]
        return values


class RewardModelScorer(ModelScorer):
    """The score at the last token of prompt and response."""

    name = "reward_model"

    def score(self, responses: Sequence[ScoredResponse], tell: Tell = lambda done, total: None) -> list[float]:
        """One raw score (logit of the head) a response; `tell` hears how many of all micro-batches are done.

        Of a response with hidden tokens it is that of its last token that is not. Raises `DivergedError` for a score that is not
        finite, `ConfigError` for a model that nothing can be hidden from.
        """
        rows = [self._row(response) for response in responses]
        return [value for [value] in self.values(rows, tell, per_target=False)]

    def _row(self, response: ScoredResponse) -> TokenRow:
        row, start = TokenRow.from_prompt_response(response.prompt_ids, response.response_ids), len(response.prompt_ids)
        if response.hidden is None:
            return row
        if not self._can_hide:
            raise ConfigError(
                "counterfactual 'mask_attention': this reward model does not tell where its tokens stand by their positions, so nothing "
                "can be hidden from it; use mask or delete"
            )
        return row.hiding(start + response.hidden[0], start + response.hidden[1])

    @cached_property
    def _can_hide(self) -> bool:
        return can_hide(self._module, self._device)


def loading(around: Around) -> dict[str, Any]:
    """How models compute, as a scorer is told."""
    engine = around.engine
    return {
        "dtype": engine.precision,
        "attention": engine.attention,
        "micro_batch_tokens": engine.micro_batch_tokens,
        "packing": engine.packing,
        "gpus": engine.gpus_per_rank,
        "trust_remote_code": around.trust_remote_code,
    }


def _checked(scores: Tensor) -> Tensor:
    broken = scores[~scores.isfinite()]
    if len(broken):
        raise DivergedError(
            f"{len(broken)} of {len(scores)} scores are not finite, the first is reward={float(broken[0])}: the reward model's "
            "weights or arithmetic are broken; train it anew with a lower learning rate, or use dtype 'fp32'"
        )
    return scores
