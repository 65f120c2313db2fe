"""Per-token values to one number, with denominators that may belong to a larger batch than the values do.

A gradient must not depend on how a batch was cut into micro-batches and ranks. So the caller sums `denominator` over the
whole global batch and hands it to `aggregate` with each piece; the pieces then add up to the value of the whole.
Losses elsewhere in this package stay per token or per row for that reason: they meet `aggregate` in the recipe.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rlhf_core.methods.online import Aggregation

AllSum = Callable[[Tensor], Tensor]
"""Sums a tensor over all ranks; what `TrainingEngine.all_sum` is."""

# exp of this is about 5e8: far beyond any ratio that means something, far below what overflows after a product.
MAX_LOG_RATIO = 20.0


def aggregate(
    values_BT: Tensor,
    mask_BT: Tensor,
    mode: Aggregation,
    constant: int | None = None,
    global_denominator: Tensor | float | None = None,
) -> Tensor:
    """Scalar from values [B, T] on valid tokens, fp32 or better; 0 where nothing is valid.

    `token_mean`: sum over tokens / number of tokens. `sequence_mean`: mean of the token means of the sequences that are not
    empty. `sequence_sum_mean`: sum / B. `constant_length`: sum / (B * constant), Dr. GRPO (arXiv 2503.20783); `constant` is
    a length in tokens. `global_denominator` replaces this batch's own denominator.
    """
    values = masked(values_BT, mask_BT)
    if mode == "sequence_mean":
        values = values / mask_BT.bool().sum(dim=-1, keepdim=True).clamp(min=1)
    total = denominator(mask_BT, mode, constant) if global_denominator is None else global_denominator
    return values.sum() / torch.as_tensor(total, dtype=values.dtype, device=values.device).clamp(min=1)


def denominator(mask_BT: Tensor, mode: Aggregation, constant: int | None = None) -> Tensor:
    """What `aggregate` divides by for this batch, a float64 scalar; sums over micro-batches and ranks to the global one."""
    mask = mask_BT.bool()
    if mode == "token_mean":
        count = mask.sum()
    elif mode == "sequence_mean":
        count = mask.any(dim=-1).sum()
    elif mode == "sequence_sum_mean":
        count = torch.tensor(len(mask), device=mask.device)
    else:
        if constant is None or constant < 1:
            raise ValueError(f"constant={constant} with mode 'constant_length': it is a length in tokens, at least 1")
        count = torch.tensor(len(mask) * constant, device=mask.device)
    return count.double()


def masked(values: Tensor, mask: Tensor) -> Tensor:
    """Values in fp32 or better, 0 outside the mask whatever stands there; so neither garbage nor its gradient gets in."""
    return torch.where(mask.bool(), widened(values), 0.0)


def widened(values: Tensor) -> Tensor:
    """The same values in fp32, or as they are where they are more precise."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def masked_mean(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean over the valid tokens of each sequence, [B]; 0 for an empty one."""
    return masked(values_BT, mask_BT).sum(dim=-1) / mask_BT.bool().sum(dim=-1).clamp(min=1)


def ratio(log_ratio: Tensor) -> Tensor:
    """exp(log_ratio), exactly 1 at 0 and finite for any input."""
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def local_sum(values: Tensor) -> Tensor:
    """The `AllSum` of a single rank."""
    return values
