"""Preference methods: a row each. Another of this kind is a loss function and a row, here or in a package of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from rlhf_core.methods.row import Row

_LOSSES = "rlhf_core.objectives.preference"


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceMethod(Row):
    """`loss` is the import path of a function, `reads` maps its keyword parameters to settings of the stage.

    A method that learns from pairs has a loss `(Pairs, **settings) -> Tensor [B]`; `needs_reference` says whether the pairs have the
    reference's log-probs, which costs a pass over the data. The one that learns from answers is KTO, whose story is its own.
    """

    loss: str
    reads: Mapping[str, str]
    needs_reference: bool = True
    learns_from: Literal["pairs", "answers"] = "pairs"

    @property
    def settings(self) -> frozenset[str]:
        """The settings that the loss reads."""
        return frozenset(self.reads.values())


_BETA = {"beta": "beta"}
_SMOOTHED = {**_BETA, "label_smoothing": "label_smoothing"}
_WEIGHED = {"desirable_weight": "kto.desirable_weight", "undesirable_weight": "kto.undesirable_weight"}

PREFERENCE: dict[str, PreferenceMethod] = {
    "dpo": PreferenceMethod(
        about="logistic loss on the margin of log-ratios (arXiv 2305.18290)", loss=f"{_LOSSES}:dpo_loss", reads=_BETA
    ),
    "cdpo": PreferenceMethod(
        about="DPO that counts a share label_smoothing of the labels as flipped",
        loss=f"{_LOSSES}:dpo_loss",
        reads=_SMOOTHED,
        defaults={"label_smoothing": 0.1},
        positive=("label_smoothing",),
    ),
    "robust": PreferenceMethod(
        about="DPO, unbiased where a share label_smoothing of the labels is flipped (arXiv 2403.00409)",
        loss=f"{_LOSSES}:robust_loss",
        reads=_SMOOTHED,
        defaults={"label_smoothing": 0.1},
        positive=("label_smoothing",),
    ),
    "dpo_norm": PreferenceMethod(
        about="DPO on log-ratios averaged over the tokens of an answer (arXiv 2411.15124)",
        loss=f"{_LOSSES}:dpo_norm_loss",
        reads=_BETA,
        defaults={"beta": 5.0},
    ),
    "hinge": PreferenceMethod(about="hinge on the margin (SLiC, arXiv 2305.10425)", loss=f"{_LOSSES}:hinge_loss", reads=_BETA),
    "ipo": PreferenceMethod(
        about="squared distance of the margin, averaged over tokens, from 1/(2 beta) (arXiv 2310.12036)",
        loss=f"{_LOSSES}:ipo_loss",
        reads=_BETA,
    ),
    "ipo_sum": PreferenceMethod(about="IPO on sums, as in its paper", loss=f"{_LOSSES}:ipo_sum_loss", reads=_BETA),
    "simpo": PreferenceMethod(
        about="mean log-probs against a target margin, no reference (arXiv 2405.14734)",
        loss=f"{_LOSSES}:simpo_loss",
        reads={**_BETA, "gamma": "simpo.gamma"},
        defaults={"beta": 2.0},
        needs_reference=False,
    ),
    "orpo": PreferenceMethod(
        about="likelihood of the chosen answer and odds ratio of the two, no reference (arXiv 2403.07691)",
        loss=f"{_LOSSES}:orpo_loss",
        reads={"lam": "orpo.odds_ratio_weight"},
        needs_reference=False,
    ),
    "cpo": PreferenceMethod(
        about="logistic loss on the margin of log-probs, no reference, beside the likelihood (arXiv 2401.08417)",
        loss=f"{_LOSSES}:cpo_loss",
        reads=_BETA,
        defaults={"nll_coef": 1.0},
        needs_reference=False,
    ),
    "kto": PreferenceMethod(
        about="each answer by itself, judged good or bad, around the mean of mismatched ones (arXiv 2402.01306)",
        loss=f"{_LOSSES}:kto_loss",
        reads={**_BETA, **_WEIGHED},
        learns_from="answers",
    ),
}
