"""The critic's loss, per token. Reduce it with `aggregate`."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_core.objectives.aggregation import masked


def value_loss(
    values_BT: Tensor, old_values_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor, clip: float | None = None
) -> Tensor:
    """(V - R)^2 / 2, [B, T], 0 outside the mask; R and V_old carry no gradient.

    With `clip` c, the larger of that and (V_old + clip(V - V_old, +-c) - R)^2 / 2 (arXiv 1707.06347's value clipping).
    """
    values, returns = masked(values_BT, mask_BT), masked(returns_BT.detach(), mask_BT)
    losses = (values - returns).square()
    if clip is not None:
        old = masked(old_values_BT.detach(), mask_BT)
        losses = torch.maximum(losses, (old + (values - old).clamp(-clip, clip) - returns).square())
    return losses / 2
