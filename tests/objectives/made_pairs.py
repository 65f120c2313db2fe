"""`Pairs` from what a test cares for; references of 0, answers of one token and no margins otherwise."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_core.objectives.preference import Pairs


def pairs_of(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor | None = None,
    reference_rejected: Tensor | None = None,
    *,
    chosen_lengths: Tensor | None = None,
    rejected_lengths: Tensor | None = None,
) -> Pairs:
    """Each [B]."""
    zeros, ones = torch.zeros_like(chosen), torch.ones_like(chosen)
    return Pairs(
        chosen,
        rejected,
        zeros if reference_chosen is None else reference_chosen,
        zeros if reference_rejected is None else reference_rejected,
        ones if chosen_lengths is None else chosen_lengths,
        ones if rejected_lengths is None else rejected_lengths,
        zeros,
    )
