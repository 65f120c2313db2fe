"""DRCA: each unit of a response is credited with what the response is worth less what it would be worth without it.

Source: drca.md. N units take N more rewards; equal counterfactuals are asked for once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean, pstdev
from typing import Any

from rlhf_core.credit.base import Credited, Round
from rlhf_core.credit.counterfactuals import space_id, without_unit
from rlhf_core.credit.difference import kept_at_end, unit_rewards
from rlhf_core.credit.spans import Span, Spelled, decoded, spell
from rlhf_core.credit.units import content_region, entropy_units, labelled_token_units, thinking_end
from rlhf_core.rewards.base import CreditedUnit, ScoredResponse
from rlhf_core.settings.credit import DrcaCredit


class Drca:
    """Difference rewards by the settings; `clip` bounds what is subtracted, as rewards are bounded, None: not at all."""

    def __init__(self, settings: DrcaCredit, clip: float | None) -> None:
        self._settings, self._clip = settings, clip

    @property
    def needs_entropy(self) -> bool:
        """Whether units are told by the entropy of the tokens."""
        return self._settings.unit_extraction == "entropy" and self._settings.beta > 0

    def __call__(self, given: Round) -> Credited:
        """What no unit is found in, or cannot be scored without one, keeps its reward at its last token."""
        total = given.rewards.total
        tokens = list(given.rewards.tokens) or [None] * len(total)
        if self._settings.beta == 0:
            return Credited(total, tokens)
        spelled = [spell(response.response_ids, given.tokenizer) for response in given.responses]
        units = [self._units(given, i, its) if total[i] is not None and its else [] for i, its in enumerate(spelled)]
        without, asked_tokens = self._worth_without(given, units)
        credited: list[list[CreditedUnit]] = [[] for _ in total]
        at_end = list(total)
        sums = []
        for i, response in enumerate(given.responses):
            own, full = units[i], total[i]
            if full is None:
                continue
            bounded = self._bounded(full)
            worths = [value for value in without[i] if value is not None]
            if len(worths) < len(own):
                own, worths = [], []
            beta, bounds = self._settings.beta, [self._bounded(worth) for worth in worths]
            earned, kept = (
                unit_rewards(len(response.response_ids), own, bounded, bounds, beta=beta),
                kept_at_end(own, bounded, beta=beta),
            )
            sums.append(math.fsum([*earned, kept]))
            if own:
                at_end[i] = full - bounded + kept
                tokens[i] = [a + b for a, b in zip(earned, tokens[i] or [0.0] * len(earned), strict=True)]
                credited[i] = [CreditedUnit(*span, bounded - worth) for span, worth in zip(own, bounds, strict=True)]
        metrics = _metrics(given.responses, total, credited, sums, asked_tokens)
        metrics["spelling_failed_share"] = fmean(its is None for its in spelled)
        return Credited(at_end, tokens, credited, metrics)

    def _bounded(self, reward: float) -> float:
        return reward if self._clip is None else min(max(reward, -self._clip), self._clip)

    def _units(self, given: Round, i: int, spelled: Spelled) -> list[Span]:
        settings = self._settings
        start = 0 if settings.think_mode == "include" else thinking_end(spelled.text, *settings.think_tags)
        region = content_region(spelled, given.ends[i] is not None, start)
        thought = [(0, region[0])] if settings.think_mode == "unit" and region[0] > 0 else []
        left = settings.max_units - len(thought)
        if left < 1:
            return thought
        if settings.unit_extraction == "regex":
            return [*thought, *labelled_token_units(spelled, region, start, left, settings.labels)]
        assert given.entropy is not None, "it was said to be needed"
        entropy = given.entropy[i, : len(spelled.spans)].tolist()
        found = entropy_units(entropy, region, settings.entropy_threshold_nats, max_units=left, shift=settings.entropy_shift)
        return [*thought, *found]

    def _worth_without(self, given: Round, units: Sequence[Sequence[Span]]) -> tuple[list[list[float | None]], int]:
        """What each response is worth without each of its units, and how many tokens were scored for that."""
        blank = space_id(given.tokenizer, self._settings.mask_token_id) if any(units) else 0
        asked: dict[tuple[Any, ...], ScoredResponse] = {}
        keys: list[list[tuple[Any, ...]]] = []
        for i, (response, own) in enumerate(zip(given.responses, units, strict=True)):
            eos = given.ends[i]
            keys.append([])
            for unit in own:
                ids = without_unit(
                    response.response_ids,
                    unit,
                    self._settings.counterfactual,
                    space_id=blank,
                    eos_id=given.eos_ids[0] if eos is None else eos,
                )
                hidden = unit if self._settings.counterfactual == "mask_attention" else None
                keys[i].append(key := (response.prompt_id, tuple(ids), hidden or ()))
                asked.setdefault(key, replace(_with_ids(response, ids, given), hidden=hidden))
        # Those to one prompt next to each other, short ones first: models then hold a prompt once.
        order = sorted(asked, key=lambda key: (key[0], len(key[1]), *key[1:]))
        worths = dict(zip(order, given.worth_of([asked[key] for key in order]), strict=True)) if order else {}
        n_tokens = sum(len(its.prompt_ids) + len(its.response_ids) - _n_hidden(its) for its in asked.values())
        return [[worths[key] for key in own] for own in keys], n_tokens


def _n_hidden(response: ScoredResponse) -> int:
    return 0 if response.hidden is None else response.hidden[1] - response.hidden[0]


def _with_ids(response: ScoredResponse, ids: list[int], given: Round) -> ScoredResponse:
    return replace(response, response_ids=ids, text=decoded(given.tokenizer, ids), finish_reason="stop")


def _metrics(
    responses: Sequence[ScoredResponse],
    total: Sequence[float | None],
    credited: Sequence[Sequence[CreditedUnit]],
    sums: Sequence[float],
    asked_tokens: int,
) -> dict[str, float]:
    valid = [i for i, value in enumerate(total) if value is not None]
    if not valid:
        return {}
    differences = [unit.credit for i in valid for unit in credited[i]]
    covered = sum(unit.end - unit.start for i in valid for unit in credited[i])
    spread = (
        {
            "difference/mean": fmean(differences),
            "difference/std": pstdev(differences),
            "difference/min": min(differences),
            "difference/max": max(differences),
        }
        if differences
        else {}
    )
    return {
        "units": fmean(len(credited[i]) for i in valid),
        "with_units_share": fmean(bool(credited[i]) for i in valid),
        "fallback_share": fmean(not credited[i] for i in valid),
        "sum_of_differences": fmean(math.fsum(unit.credit for unit in credited[i]) for i in valid),
        "covered_share": covered / sum(len(responses[i].response_ids) for i in valid),
        "sum_of_rewards": fmean(sums),
        "extra_token_ratio": asked_tokens / sum(len(r.prompt_ids) + len(r.response_ids) for r in responses),
        **spread,
    }
