"""Divergence between a teacher's and a student's next-token distributions. `rlhf_core/models/divergence.py` takes it from logits."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rlhf_core.settings.supervised import DistillationKind


def divergence(student: Tensor, teacher: Tensor, kind: DistillationKind, beta: float = 0.5) -> Tensor:
    """Of a student q from a teacher p, given as log-probs [..., V]; nats, [...].

    `forward_kl` KL(p || q), `reverse_kl` KL(q || p), or `jsd` beta KL(p || m) + (1 - beta) KL(q || m) with the mixture
    m = beta p + (1 - beta) q, the generalised Jensen-Shannon divergence of GKD (arXiv 2306.13649, equation 1).
    """
    if kind == "forward_kl":
        return _kl(teacher, student)
    if kind == "reverse_kl":
        return _kl(student, teacher)
    mixture = _mixture(student, teacher, beta)
    return beta * _kl(teacher, mixture) + (1 - beta) * _kl(student, mixture)


def divergence_and_slope(student: Tensor, teacher: Tensor, kind: DistillationKind, beta: float = 0.5) -> tuple[Tensor, Tensor]:
    """`divergence` [...], and its gradient at the student's logits, [..., V], in closed form."""
    probs = student.exp()
    if kind == "forward_kl":
        targets = teacher.exp()
        return (targets * (teacher - student)).sum(dim=-1), probs.sub_(targets)
    other, factor = (teacher, 1.0) if kind == "reverse_kl" else (_mixture(student, teacher, beta), 1 - beta)
    terms = probs * (student - other)
    own = terms.sum(dim=-1, keepdim=True)
    gradient = terms.sub_(probs.mul_(own)).mul_(factor)
    value = factor * own[..., 0]
    return (value if kind == "reverse_kl" else value + beta * _kl(teacher, other)), gradient


def _kl(first: Tensor, second: Tensor) -> Tensor:
    return (first.exp() * (first - second)).sum(dim=-1)


def _mixture(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """Log-probs of beta teacher + (1 - beta) student."""
    return torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
