"""One batch of eight, eight of one and ragged pieces give the same loss and gradient when denominators are global."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import pytest
import torch
from torch import Tensor

from rlhf_core.methods.online import Aggregation
from rlhf_core.objectives.aggregation import aggregate, denominator
from rlhf_core.objectives.kl import kl_estimate
from rlhf_core.objectives.policy import cispo_loss, gspo_loss, ppo_loss, reinforce_loss
from rlhf_core.objectives.preference import (
    Pairs,
    cpo_loss,
    dpo_loss,
    dpo_norm_loss,
    hinge_loss,
    ipo_loss,
    ipo_sum_loss,
    kto_loss,
    kto_reference,
    orpo_loss,
    robust_loss,
    simpo_loss,
)
from rlhf_core.objectives.reward import pairwise_reward_loss
from rlhf_core.objectives.value import value_loss
from tests.objectives.made_pairs import pairs_of

B, T = 8, 12
CONSTANT = 16
LENGTHS = torch.tensor([12, 1, 5, 7, 0, 3, 9, 2])  # one sequence is empty
MASK = torch.arange(T) < LENGTHS.unsqueeze(-1)
CUTS = {"8x1": [1] * 8, "2x4": [4, 4], "ragged": [3, 1, 4]}
each_cut = pytest.mark.parametrize("sizes", CUTS.values(), ids=CUTS)

TokenLoss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # prediction, old, advantages, mask -> losses [B, T]
TOKEN_LOSSES: dict[str, TokenLoss] = {
    "ppo": lambda x, old, a, m: ppo_loss(x, old, a, m, clip_low=0.2, clip_high=0.28, dual_clip=3.0).losses,
    "gspo": lambda x, old, a, m: gspo_loss(x, old, a, m, clip_low=0.2, clip_high=0.2).losses,
    "cispo": lambda x, old, a, m: cispo_loss(x, old, a, m, clip_high=0.3).losses,
    "reinforce": lambda x, _, a, m: reinforce_loss(x, x.detach(), a, m).losses,
    "value": lambda x, old, a, m: value_loss(x, old, a, m, clip=0.2),
    "k1": lambda x, old, _, m: kl_estimate(x, old, "k1", m),
    "k2": lambda x, old, _, m: kl_estimate(x, old, "k2", m),
    "k3": lambda x, old, _, m: kl_estimate(x, old, "k3", m),
    "nll": lambda x, *_: -x,
}


@each_cut
@pytest.mark.parametrize("mode", get_args(Aggregation))
@pytest.mark.parametrize("loss", TOKEN_LOSSES.values(), ids=TOKEN_LOSSES)
def test_token_losses(loss: TokenLoss, mode: Aggregation, sizes: list[int]) -> None:
    torch.manual_seed(0)
    prediction, old = -torch.rand(B, T), -torch.rand(B, T)
    advantages = torch.randn(B, T)
    total = torch.stack([denominator(MASK[rows], mode, CONSTANT) for rows in _pieces(sizes)]).sum()

    def part(x: Tensor, rows: slice) -> Tensor:
        width = int(LENGTHS[rows].max())  # a piece is as wide as its own longest row
        arguments = [tensor[:, :width] for tensor in (x, old[rows], advantages[rows], MASK[rows])]
        return aggregate(loss(*arguments), arguments[-1], mode, CONSTANT, global_denominator=total)

    whole = aggregate(loss(prediction, old, advantages, MASK), MASK, mode, CONSTANT)
    assert whole.item() == pytest.approx(_sum_of_parts(part, prediction, sizes)[0], abs=1e-6)
    _assert_same(part, prediction, sizes)


RowLoss = Callable[[Tensor, slice], Tensor]  # summed log-probs [b, 2] of chosen and rejected, which rows -> losses [b]
REFERENCE = -torch.linspace(1.0, 9.0, 2 * B).reshape(B, 2)
TOKENS = torch.arange(4.0, 4.0 + 2 * B).reshape(B, 2)
REFERENCE_POINT = kto_reference(torch.linspace(-1.0, 2.0, B))


def _lengths(rows: slice) -> dict[str, Tensor]:
    return {"chosen_lengths": TOKENS[rows, 0], "rejected_lengths": TOKENS[rows, 1]}


def _pairs(x: Tensor, rows: slice) -> Pairs:
    return pairs_of(*x.unbind(1), *REFERENCE[rows].unbind(1), **_lengths(rows))


ROW_LOSSES: dict[str, RowLoss] = {
    "dpo": lambda x, rows: dpo_loss(_pairs(x, rows), beta=0.1, label_smoothing=0.1),
    "dpo_norm": lambda x, rows: dpo_norm_loss(_pairs(x, rows), beta=0.1),
    "robust": lambda x, rows: robust_loss(_pairs(x, rows), beta=0.1, label_smoothing=0.1),
    "hinge": lambda x, rows: hinge_loss(_pairs(x, rows), beta=0.1),
    "ipo": lambda x, rows: ipo_loss(_pairs(x, rows), beta=0.1),
    "ipo_sum": lambda x, rows: ipo_sum_loss(_pairs(x, rows), beta=0.1),
    "simpo": lambda x, rows: simpo_loss(_pairs(x, rows), beta=2.0, gamma=0.5),
    "orpo": lambda x, rows: orpo_loss(_pairs(x, rows), lam=0.25),
    "cpo": lambda x, rows: cpo_loss(_pairs(x, rows), beta=0.1),
    "kto": lambda x, rows: kto_loss(x[:, 0], REFERENCE[rows, 0], TOKENS[rows, 0] % 4 == 0, REFERENCE_POINT, beta=0.1),
    "pairwise": lambda x, rows: pairwise_reward_loss(*x.unbind(1), TOKENS[rows, 0] / 10),
}


@each_cut
@pytest.mark.parametrize("loss", ROW_LOSSES.values(), ids=ROW_LOSSES)
def test_row_losses(loss: RowLoss, sizes: list[int]) -> None:
    torch.manual_seed(0)
    _assert_same(lambda x, rows: loss(x, rows).sum() / B, -10 * torch.rand(B, 2), sizes)


def _pieces(sizes: list[int]) -> list[slice]:
    ends = torch.tensor(sizes).cumsum(0).tolist()
    return [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]


def _sum_of_parts(part: Callable[[Tensor, slice], Tensor], prediction: Tensor, sizes: list[int]) -> tuple[float, Tensor]:
    """Loss and accumulated gradient over the pieces, one backward pass each."""
    leaf = prediction.clone().requires_grad_()
    total = 0.0
    for rows in _pieces(sizes):
        value = part(leaf[rows], rows)
        value.backward()
        total += value.item()
    assert leaf.grad is not None
    return total, leaf.grad


def _assert_same(part: Callable[[Tensor, slice], Tensor], prediction: Tensor, sizes: list[int]) -> None:
    loss, gradient = _sum_of_parts(part, prediction, sizes)
    whole_loss, whole_gradient = _sum_of_parts(part, prediction, [B])
    assert loss == pytest.approx(whole_loss, abs=1e-5, rel=1e-6)
    assert whole_gradient.abs().sum() > 0
    torch.testing.assert_close(gradient, whole_gradient, atol=1e-6, rtol=1e-6)
