"""Divergence between a teacher's and a student's next-token distributions, per token. Reduce it with `aggregate`."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rlhf_core.objectives.aggregation import masked
from rlhf_core.objectives.logprobs import LOWEST_LOGIT

DistillationKind = Literal["forward_kl", "reverse_kl"]


def distillation_loss(student_logits_BTV: Tensor, teacher_logits_BTV: Tensor, mask_BT: Tensor, kind: DistillationKind) -> Tensor:
    """`forward_kl` KL(teacher || student) or `reverse_kl` KL(student || teacher), nats, [B, T], 0 outside the mask.

    The teacher carries no gradient. Meant for chunks: fp32 copies of the logits are made.
    """
    student, teacher = (_log_softmax(x, mask_BT) for x in (student_logits_BTV, teacher_logits_BTV.detach()))
    first, second = (teacher, student) if kind == "forward_kl" else (student, teacher)
    return masked((first.exp() * (first - second)).sum(dim=-1), mask_BT)


def _log_softmax(logits_BTV: Tensor, mask_BT: Tensor) -> Tensor:
    return torch.log_softmax(masked(logits_BTV, mask_BT.unsqueeze(-1)).clamp(min=LOWEST_LOGIT), dim=-1)
