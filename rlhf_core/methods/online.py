"""Online methods: a row each. Another of this kind is an estimator or a loss and a row, here or in a package of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from rlhf_core.methods.row import Row

Aggregation = Literal["token_mean", "sequence_mean", "sequence_sum_mean", "constant_length"]
KlKind = Literal["k1", "k2", "k3"]
KlPlace = Literal["reward", "loss"]
Role = Literal["critic", "teacher", "proposal"]

_ADVANTAGES, _LOSSES = "rlhf_core.objectives.advantages", "rlhf_core.objectives.policy"


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineMethod(Row):
    """What tells one online method from another.

    `advantages` is the import path of an estimator `(Earned, **settings) -> Estimate`, whose keyword parameters `advantages_reads` maps to
    settings of the stage; `whiten` says whether its advantages are whitened over the whole round. `loss` is that of a loss
    `(logprobs, old_logprobs, advantages, mask, **settings) -> PolicyLoss`, `loss_reads` likewise, and `aggregation` makes one number of its
    tokens. `kl_estimate` of the KL to the reference, and where it goes. `roles` are the models that take part beside the policy.
    A method that compares samples of one prompt needs `min_samples` of them. `further_reads` are settings that the run itself reads for it.
    """

    advantages: str
    loss: str
    aggregation: Aggregation
    kl_estimate: KlKind
    kl_place: KlPlace
    whiten: bool = False
    roles: tuple[Role, ...] = ()
    min_samples: int = 1
    further_reads: tuple[str, ...] = ()
    advantages_reads: Mapping[str, str] = field(default_factory=dict)
    loss_reads: Mapping[str, str] = field(default_factory=dict)

    @property
    def settings(self) -> frozenset[str]:
        """The settings that the estimator, the loss and the further models read."""
        further = (setting for role in self.roles for setting in ROLE_SETTINGS[role])
        return frozenset((*self.advantages_reads.values(), *self.loss_reads.values(), *self.further_reads, *further))


# Of RePULSe: what the term that makes bad responses rarer is computed with, by the parameter of an estimator.
_BAD = {
    "alpha": "repulse.alpha",
    "beta": "repulse.target_beta",
    "weights_beta": "repulse.weights_beta",
    "reduction": "repulse.negative_reduction",
    "weights": "repulse.weights",
    "below": "repulse.below",
}
_STARTS = ("repulse.start_alpha", "repulse.start_target_beta")
# What is read where a model takes part.
ROLE_SETTINGS: Mapping[Role, tuple[str, ...]] = {
    "critic": ("critic.learning_rate", "critic.value_clip", "critic.warmup_steps"),
    "teacher": (),
    "proposal": (
        *_BAD.values(),
        *_STARTS,
        "repulse.proposal_learning_rate",
        "repulse.proposal_updates",
        "repulse.second_term",
        "repulse.first",
    ),
}

_GAE = {"gamma": "gamma", "lam": "critic.gae_lambda"}
_CLIP = {"clip_low": "clip_low", "clip_high": "clip_high"}
_PPO = {**_CLIP, "dual_clip": "dual_clip"}

# What most methods are: a clipped ratio a token, or a group's samples against one another.
_RETURNS = OnlineMethod(
    about="",
    advantages=f"{_ADVANTAGES}:returns_to_go",
    loss=f"{_LOSSES}:ppo_loss",
    loss_reads=_PPO,
    aggregation="token_mean",
    kl_estimate="k1",
    kl_place="reward",
    defaults={"kl_coef": 0.01},
)
_GROUPS = replace(
    _RETURNS,
    advantages=f"{_ADVANTAGES}:group_norm_advantages",
    min_samples=2,
    kl_estimate="k3",
    kl_place="loss",
    defaults={},
)

_REINFORCE = replace(
    _RETURNS,
    advantages=f"{_ADVANTAGES}:returns_less_others",
    advantages_reads={"gamma": "gamma"},
    loss=f"{_LOSSES}:reinforce_loss",
    loss_reads={},
    aggregation="sequence_mean",
)

ONLINE: dict[str, OnlineMethod] = {
    "ppo": replace(
        _RETURNS,
        about="a critic spreads credit over tokens; the KL is a penalty a token (arXiv 1707.06347, 2203.02155)",
        advantages=f"{_ADVANTAGES}:critic_advantages",
        advantages_reads=_GAE,
        whiten=True,
        roles=("critic",),
    ),
    "reinforce": replace(
        _REINFORCE,
        about="returns less the mean return of the prompt's other samples, no clipping (Williams 1992; arXiv 2402.14740)",
    ),
    "reinforce_pp": replace(
        _RETURNS,
        about="returns whitened over the round, no critic and no groups (REINFORCE++, arXiv 2501.03262)",
        advantages_reads={"gamma": "gamma"},
        whiten=True,
    ),
    "reinforce_pp_baseline": replace(
        _GROUPS,
        about="rewards less their prompt's mean, whitened over the round (REINFORCE++-baseline, arXiv 2501.03262)",
        advantages=f"{_ADVANTAGES}:group_mean_advantages",
        whiten=True,
        kl_estimate="k2",
        defaults={"kl_coef": 0.01},
    ),
    "rloo": replace(
        _RETURNS,
        about="a reward less the mean of the prompt's other samples (arXiv 2402.14740)",
        advantages=f"{_ADVANTAGES}:rloo_advantages",
        min_samples=2,
    ),
    "grpo": replace(
        _GROUPS,
        about="a response is as good as it stands out among those to its prompt (arXiv 2402.03300)",
        aggregation="sequence_mean",
        defaults={"kl_coef": 0.01},
    ),
    "dr_grpo": replace(
        _GROUPS,
        about="GRPO without its two biases: no division by the deviation, none by the length (arXiv 2503.20783)",
        advantages=f"{_ADVANTAGES}:group_mean_advantages",
        aggregation="constant_length",
    ),
    "dapo": replace(
        _GROUPS,
        about="GRPO over tokens, clipped higher, groups of equal rewards drawn again, long answers paying (arXiv 2503.14476)",
        defaults={"clip_high": 0.28, "max_refills": 4, "overlong_penalty.factor": 1.0},
    ),
    "gspo": replace(
        _GROUPS,
        about="one ratio a response (arXiv 2507.18071)",
        loss=f"{_LOSSES}:gspo_loss",
        loss_reads=_CLIP,
        aggregation="sequence_mean",
        defaults={"clip_low": 3e-4, "clip_high": 4e-4},
    ),
    "cispo": replace(
        _GROUPS,
        about="bounded weights on the likelihood, no token without a gradient (arXiv 2506.13585)",
        loss=f"{_LOSSES}:cispo_loss",
        loss_reads={"clip_high": "clip_high"},
    ),
    "repulse": replace(
        _REINFORCE,
        about="REINFORCE that makes bad responses rarer, which a second policy learns to find (arXiv 2510.21184)",
        min_samples=2,
        roles=("proposal",),
    ),
    "repulse_base": replace(
        _REINFORCE,
        about="RePULSe without a second policy: the samples of the policy itself are weighed (arXiv 2510.21184, appendix C)",
        advantages="rlhf_core.objectives.twisted:returns_less_others_and_bad",
        advantages_reads={"gamma": "gamma", **_BAD},
        further_reads=_STARTS,
        min_samples=2,
    ),
    "opd": replace(
        _GROUPS,
        about="on-policy distillation: a token is as good as a teacher finds it likelier than the policy does (arXiv 2306.13649)",
        advantages=f"{_ADVANTAGES}:teacher_advantages",
        min_samples=1,
        roles=("teacher",),
    ),
}
