"""Any finite input gives a finite loss and gradient; garbage in masked slots and empty masks change nothing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rlhf_core.methods.online import Aggregation
from rlhf_core.objectives.advantages import discounted_returns, gae, group_advantages, whiten
from rlhf_core.objectives.aggregation import aggregate
from rlhf_core.objectives.kl import kl_estimate, shape_rewards
from rlhf_core.objectives.logprobs import token_logprobs
from rlhf_core.objectives.policy import cispo_loss, gspo_loss, ppo_loss, reinforce_loss, rollout_correction
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
from tests.masked_divergences import masked_divergences
from tests.objectives.made_pairs import pairs_of

B, T = 3, 5
any_number = st.floats(-1e6, 1e6, width=32) | st.sampled_from([0.0, -1e6, 1e6, 88.8, -103.9])
any_grid = st.lists(any_number, min_size=B * T, max_size=B * T).map(lambda numbers: torch.tensor(numbers).reshape(B, T))
any_mask = st.lists(st.booleans(), min_size=B * T, max_size=B * T).map(lambda flags: torch.tensor(flags).reshape(B, T))
GARBAGE = [float("nan"), float("inf"), float("-inf"), 1e38]

Function = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # three [B, T] inputs and a mask -> [B, T]
ON_TOKENS: dict[str, Function] = {
    "ppo": lambda x, y, z, m: ppo_loss(x, y, z, m, clip_low=0.2, clip_high=0.2).losses,
    "ppo_unclipped": lambda x, y, z, m: ppo_loss(x, y, z, m, clip_low=1.0, clip_high=float("inf")).losses,
    "ppo_dual": lambda x, y, z, m: ppo_loss(x, y, z, m, clip_low=0.2, clip_high=0.2, dual_clip=2.0).losses,
    "clipped": lambda x, y, z, m: ppo_loss(x, y, z, m, clip_low=0.2, clip_high=0.2).clipped,
    "approx_kl": lambda x, y, z, m: ppo_loss(x, y, z, m, clip_low=0.2, clip_high=0.2).approx_kl,
    "gspo": lambda x, y, z, m: gspo_loss(x, y, z, m, clip_low=0.2, clip_high=0.2).losses,
    "cispo": lambda x, y, z, m: cispo_loss(x, y, z, m, clip_high=0.2).losses,
    "reinforce": lambda x, _, z, m: reinforce_loss(x, x.detach(), z, m).losses,
    "truncate": lambda x, y, _, m: rollout_correction(x, y, m, "truncate", low=0.5, high=2.0),
    "mask": lambda x, y, _, m: rollout_correction(x, y, m, "mask", low=0.5, high=2.0),
    "sequence_mask": lambda x, y, _, m: rollout_correction(x, y, m, "sequence_mask", low=0.5, high=2.0),
    "value": lambda x, _, z, m: value_loss(x, x.detach(), z, m),
    "value_clipped": lambda x, y, z, m: value_loss(x, y, z, m, clip=0.2),
    "k1": lambda x, y, _, m: kl_estimate(x, y, "k1", m),
    "k2": lambda x, y, _, m: kl_estimate(x, y, "k2", m),
    "k3": lambda x, y, _, m: kl_estimate(x, y, "k3", m),
    "shape_rewards": lambda x, _, __, m: shape_rewards(torch.ones(B), x, m, 0.1, 5.0),
    "gae": lambda x, y, _, m: gae(x, y, m, 0.99, 0.95)[0],
    "returns": lambda x, y, _, m: gae(x, y, m, 0.99, 0.95)[1],
    "discounted_returns": lambda x, _, __, m: discounted_returns(x, m, 0.99),
    "whiten": lambda x, _, __, m: whiten(x, m),
}
each_function = pytest.mark.parametrize("function", ON_TOKENS.values(), ids=ON_TOKENS)


@each_function
@given(x=any_grid, y=any_grid, z=any_grid, mask=any_mask)
def test_token_functions(function: Function, x: Tensor, y: Tensor, z: Tensor, mask: Tensor) -> None:
    x = x.clone().requires_grad_()
    result = function(x, y, z, mask)
    assert result.isfinite().all()
    assert result[~mask].eq(0).all()
    _assert_finite_gradient(result, x)


@each_function
@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_in_masked_slots_reaches_neither_values_nor_gradients(function: Function, garbage: float) -> None:
    torch.manual_seed(0)
    clean = [torch.randn(B, T) for _ in range(3)]
    mask = torch.arange(T) < torch.tensor([[5], [2], [0]])
    dirty = [torch.where(mask, tensor, garbage) for tensor in clean]
    gradients = []
    for x, y, z in (clean, dirty):
        leaf = x.clone().requires_grad_()
        result = function(leaf, y, z, mask)
        gradients.append((result.detach(), _gradient(result, leaf)))
    torch.testing.assert_close(gradients[1], gradients[0], atol=0, rtol=0)


@pytest.mark.parametrize("mode", get_args(Aggregation))
@given(values=any_grid, mask=any_mask)
def test_aggregation(mode: Aggregation, values: Tensor, mask: Tensor) -> None:
    garbage = torch.where(mask, values, float("nan")).requires_grad_()
    result = aggregate(garbage, mask, mode, 16)
    assert result.isfinite()
    assert _gradient(result, garbage)[~mask].eq(0).all()


@pytest.mark.parametrize("mode", get_args(Aggregation))
@pytest.mark.parametrize("shape", [(B, T), (B, 0), (0, 0)])
def test_an_empty_mask_gives_zero_that_still_hangs_on_the_graph(mode: Aggregation, shape: tuple[int, int]) -> None:
    values = torch.full(shape, float("nan"), requires_grad=True)
    result = aggregate(values, torch.zeros(shape), mode, 16)
    assert result.item() == 0.0
    assert _gradient(result, values).eq(0).all()


pairs = st.lists(st.tuples(any_number, any_number), min_size=1, max_size=4).map(torch.tensor)
PAIR_LOSSES: dict[str, Callable[[Pairs], Tensor]] = {
    "dpo": partial(dpo_loss, beta=0.1, label_smoothing=0.1),
    "dpo_norm": partial(dpo_norm_loss, beta=0.1),
    "robust": partial(robust_loss, beta=0.1, label_smoothing=0.1),
    "hinge": partial(hinge_loss, beta=0.1),
    "ipo": partial(ipo_loss, beta=0.1),
    "ipo_sum": partial(ipo_sum_loss, beta=0.1),
    "simpo": partial(simpo_loss, beta=2.0, gamma=0.5),
    "orpo": partial(orpo_loss, lam=0.25),
    "cpo": partial(cpo_loss, beta=0.1),
}
ON_PAIRS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    **{name: lambda c, r, loss=loss: loss(_pairs(c, r)) for name, loss in PAIR_LOSSES.items()},
    "kto": lambda c, r: kto_loss(c, r, c > 0, kto_reference(c - r), beta=0.1),
    "pairwise": pairwise_reward_loss,
}


def _pairs(chosen: Tensor, rejected: Tensor) -> Pairs:
    """References the other way round; the rejected answer has no token."""
    return pairs_of(chosen, rejected, rejected, chosen, rejected_lengths=torch.zeros_like(rejected))


@pytest.mark.parametrize("loss", ON_PAIRS.values(), ids=ON_PAIRS)
@given(logps=pairs)
def test_pair_losses(loss: Callable[[Tensor, Tensor], Tensor], logps: Tensor) -> None:
    chosen = logps[:, 0].clone().requires_grad_()
    result = loss(chosen, logps[:, 1])
    assert result.shape == chosen.shape
    assert result.isfinite().all()
    _assert_finite_gradient(result, chosen)


@pytest.mark.parametrize("kind", ["rloo", "group_mean", "group_norm"])
@given(rewards=any_grid)
def test_group_advantages(kind: Any, rewards: Tensor) -> None:
    assert group_advantages(rewards, kind).isfinite().all()


@pytest.mark.parametrize("reward", [0.0, 0.1, 0.7, -1e5, 1 / 3])
def test_equal_rewards_give_no_advantage_however_they_round(reward: float) -> None:
    advantages = group_advantages(torch.full((2, 7), reward), "group_norm")
    assert advantages.abs().max() < 1e-6


@given(logits=any_grid, labels=st.lists(st.integers(0, T - 1), min_size=B, max_size=B), temperature=st.floats(0.01, 10))
def test_token_logprobs(logits: Tensor, labels: list[int], temperature: float) -> None:
    logits = logits.clone().requires_grad_()
    logprobs, entropy = token_logprobs(logits, torch.tensor(labels), temperature)
    assert logprobs.isfinite().all()
    assert entropy.isfinite().all()
    _assert_finite_gradient(logprobs + entropy, logits)


def test_words_ruled_out_have_no_part_in_the_entropy() -> None:
    logits = torch.tensor([[1.0, 2.0, float("-inf")]], requires_grad=True)
    logprobs, entropy = token_logprobs(logits, torch.tensor([1]))
    expected_logprobs, expected_entropy = token_logprobs(logits[:, :2].detach(), torch.tensor([1]))
    torch.testing.assert_close((logprobs.detach(), entropy.detach()), (expected_logprobs, expected_entropy))
    _assert_finite_gradient(logprobs + entropy, logits)


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd"])
@given(student=any_grid, teacher=any_grid, mask=st.lists(st.booleans(), min_size=B, max_size=B))
def test_distillation(kind: Any, student: Tensor, teacher: Tensor, mask: list[bool]) -> None:
    valid = torch.tensor(mask)
    student = torch.where(valid.unsqueeze(-1), student, float("nan")).requires_grad_()
    losses = masked_divergences(student.unsqueeze(0), teacher.unsqueeze(0), valid.unsqueeze(0), kind)
    assert losses.isfinite().all()
    _assert_finite_gradient(losses, student)


def _gradient(result: Tensor, leaf: Tensor) -> Tensor:
    """d sum(result) / d leaf; zeros where the result is detached on purpose."""
    if not result.requires_grad:
        return torch.zeros_like(leaf)
    return torch.autograd.grad(result.sum(), leaf)[0]


def _assert_finite_gradient(result: Tensor, leaf: Tensor) -> None:
    assert _gradient(result, leaf).isfinite().all()
