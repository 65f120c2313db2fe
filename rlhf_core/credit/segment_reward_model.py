"""A reward model of segments as a reward: what each segment of a response earns, or their mean. Source: segment_reward.md."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from data_processing.errors import ConfigError
from rlhf_core.batching.rows import TokenRow
from rlhf_core.batching.templates import Renderer
from rlhf_core.credit.positions import MissingFitError, PositionFit
from rlhf_core.credit.reading import ENTROPY_MODEL_NAME, Reading, read_fit, spans_of
from rlhf_core.credit.segments import is_penalised, normalised, penalty_rewards, token_rewards
from rlhf_core.credit.spans import Span
from rlhf_core.models.load import load_lm, load_tokenizer
from rlhf_core.models.modules import PolicyModule
from rlhf_core.models.passes import Tell, passes
from rlhf_core.rewards.base import CreditedUnit, ScoredResponse, Scores
from rlhf_core.rewards.reward_model import RewardModelScorer
from rlhf_core.settings.credit import SegmentCredit
from rlhf_core.settings.segments import DENSE_MODES


class SegmentScorer(RewardModelScorer):
    """What a response is worth by a reward model of segments: the mean over them. The language model that tells them is beside it."""

    def __init__(self, model: Path, policy_model: Path, *, reading: Reading, **loading: Any) -> None:
        super().__init__(model, policy_model, **loading)
        trust = loading.get("trust_remote_code", False)
        language_model = load_lm(
            model / ENTROPY_MODEL_NAME, dtype=loading["dtype"], attention=loading["attention"], trust_remote_code=trust
        )
        self._language_model = PolicyModule(language_model.to(self._device), loading["packing"]).eval()
        self._tokenizer = load_tokenizer(policy_model, trust_remote_code=trust)
        self._stop_ids = Renderer(self._tokenizer).stop_ids
        self._reading = reading

    @property
    def notes(self) -> tuple[str, ...]:
        """Those of both models."""
        return tuple(dict.fromkeys((*super().notes, *self._language_model.layouts.notes)))

    def score(self, responses: Sequence[ScoredResponse], tell: Tell = lambda done, total: None) -> list[float]:
        """The mean of its segments' rewards, a number a response. Raises as a reward model does."""
        return [fmean(earned) for _, earned in self.read(responses, tell)]

    def read(
        self, responses: Sequence[ScoredResponse], tell: Tell = lambda done, total: None
    ) -> list[tuple[list[Span], list[float]]]:
        """The segments of each response and what each earns; raises `ConfigError` for tokens that are hidden."""
        if any(response.hidden for response in responses):
            raise ConfigError(
                "counterfactual 'mask_attention' with a reward model of segments, which a hidden unit would move: use mask or delete"
            )
        rows = [TokenRow.from_prompt_response(r.prompt_ids, r.response_ids) for r in responses]
        entropies = self._entropies(rows, tell)
        spans = [
            spans_of(self._reading, entropy, response.response_ids, self._stop_ids, self._tokenizer)
            for response, entropy in zip(responses, entropies, strict=True)
        ]
        ends = [
            TokenRow.read_at(row.ids, [row.prompt_length + end - 1 for _, end in own])
            for row, own in zip(rows, spans, strict=True)
        ]
        return list(zip(spans, self.values(ends, tell, per_target=True), strict=True))

    def fit(self, model: Path) -> PositionFit:
        """What is usual by position, from the folder it was loaded from; raises `ConfigError` where there is none."""
        return read_fit(model, self._reading)

    def ends(self, response: ScoredResponse) -> bool:
        """Whether the response ends in a token that ends one."""
        return response.response_ids[-1] in self._stop_ids

    @torch.inference_mode()
    def _entropies(self, rows: Sequence[TokenRow], tell: Tell) -> list[list[float]]:
        """Of each row's targets, nats."""
        found: list[list[float]] = [[] for _ in rows]
        for indices, batch in passes(rows, self._language_model.layouts, self._micro_batch_tokens, self._device, tell):
            _, entropies = self._language_model(batch, with_entropy=True, entropy_has_grad=False)
            for i, own in zip(indices, entropies.tolist(), strict=True):
                found[i] = own[: rows[i].n_targets]
        return found


class SpreadSegments:
    """Rewards of tokens, or one at the last, from those of segments, by the settings of the run's credit."""

    name = "reward_model"

    def __init__(self, scorer: SegmentScorer, reading: Reading, settings: SegmentCredit, model: Path) -> None:
        self._scorer, self._reading, self._settings = scorer, reading, settings
        self._is_dense = settings.mode in DENSE_MODES
        self._fit = None
        if settings.normalize and self._is_dense:
            with suppress(MissingFitError) if settings.allow_missing_fit else nullcontext():
                self._fit = read_fit(model, reading)

    @property
    def notes(self) -> tuple[str, ...]:
        """The scorer's."""
        return self._scorer.notes

    def score(self, responses: Sequence[ScoredResponse]) -> Scores:
        """Where tokens are rewarded the response itself gets nothing more. `evaluation` is the mean of the segments' own rewards."""
        read = self._scorer.read(responses)
        earned = [self._normalised(values) for _, values in read]
        rewards = [self._rewards(response, spans, own) for response, (spans, _), own in zip(responses, read, earned, strict=True)]
        metrics: dict[str, list[float | None]] = {
            "evaluation": [fmean(values) for _, values in read],
            "segments": [float(len(spans)) for spans, _ in read],
            "segment_tokens": [fmean(end - start for start, end in spans) for spans, _ in read],
            "penalised": [float(self._is_penalised(response)) for response in responses],
        }
        units = [
            [] if is_out else [CreditedUnit(*span, value) for span, value in zip(spans, own, strict=True)]
            for (spans, _), own, is_out in zip(read, earned, metrics["penalised"], strict=True)
        ]
        if self._is_dense:
            return Scores([0.0] * len(responses), metrics, rewards, units=units)
        return Scores([own[-1] for own in rewards], metrics, units=units)

    def _normalised(self, values: Sequence[float]) -> list[float]:
        if self._is_dense or not self._settings.normalize:
            return normalised(values, self._fit, self._settings.std_floor)
        return [(value - self._reading.mean) / self._reading.std for value in values]

    def _rewards(self, response: ScoredResponse, spans: Sequence[Span], earned: Sequence[float]) -> list[float]:
        settings, length = self._settings, len(response.response_ids)
        if self._is_penalised(response):
            return penalty_rewards(settings.penalty, length, settings.mode)
        divided_by = float(length) if settings.length_norm and self._is_dense else 1.0
        return token_rewards(earned, spans, length, settings.mode, divided_by=divided_by, tau=settings.logsumexp_tau)

    def _is_penalised(self, response: ScoredResponse) -> bool:
        return is_penalised(
            self._scorer.ends(response),
            len(response.response_ids),
            without_end=self._settings.no_eos_penalty,
            limit_tokens=self._settings.length_penalty_limit,
        )
