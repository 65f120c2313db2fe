"""`token_divergences` for tests that have full logits and a mask."""

from __future__ import annotations

from torch import Tensor

from rlhf_core.models.divergence import Outputs, token_divergences
from rlhf_core.settings.supervised import DistillationKind


def masked_divergences(
    student_BTV: Tensor, teacher_BTV: Tensor, mask_BT: Tensor, kind: DistillationKind, beta: float = 0.5
) -> Tensor:
    """Nats, [B, T], 0 outside the mask."""
    at = mask_BT.bool()
    found = token_divergences(Outputs(student_BTV[at], None), Outputs(teacher_BTV[at], None), kind, beta)
    return found.new_zeros(at.shape).masked_scatter(at, found)
