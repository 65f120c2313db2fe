"""Advantage estimators against closed forms: the right axis, the right episode end, statistics of all ranks."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rlhf_core.objectives.advantages import GroupKind, discounted_returns, gae, group_advantages, whiten
from rlhf_core.objectives.kl import shape_rewards

MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]])


def test_gae_with_lambda_one_is_discounted_return_minus_value() -> None:
    torch.manual_seed(0)
    rewards, values = torch.randn(3, 4).double(), torch.randn(3, 4).double()
    advantages, returns = gae(rewards, values, MASK, gamma=0.9, lam=1.0)
    expected = discounted_returns(rewards, MASK, gamma=0.9)
    torch.testing.assert_close(returns, expected)
    torch.testing.assert_close(advantages, (expected - values) * MASK)


def test_gae_with_lambda_zero_is_the_one_step_error() -> None:
    rewards = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    values = torch.tensor([[0.5, 1.0, 1.5, 2.0]])
    advantages, _ = gae(rewards, values, torch.tensor([[1, 1, 1, 0]]), gamma=0.5, lam=0.0)
    assert advantages.tolist() == [[1 + 0.5 * 1.0 - 0.5, 2 + 0.5 * 1.5 - 1.0, 3 + 0.0 - 1.5, 0.0]]


def test_discounted_returns_by_hand() -> None:
    returns = discounted_returns(torch.tensor([[1.0, 1.0, 1.0, 9.0]]), torch.tensor([[1, 1, 1, 0]]), gamma=0.5)
    assert returns.tolist() == [[1.75, 1.5, 1.0, 0.0]]


def test_a_critic_that_is_right_leaves_no_advantage() -> None:
    rewards = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    advantages, _ = gae(rewards, torch.ones(1, 4), torch.ones(1, 4), gamma=1.0, lam=0.95)
    assert advantages.abs().max() == 0


def test_rloo_compares_with_the_mean_of_the_other_samples_of_the_prompt() -> None:
    rewards = torch.tensor([[1.0, 2.0, 6.0], [10.0, 10.0, 13.0]])
    assert group_advantages(rewards, "rloo").tolist() == [[-3.0, -1.5, 4.5], [-1.5, -1.5, 3.0]]


def test_group_mean_and_norm_are_taken_within_a_prompt() -> None:
    rewards = torch.tensor([[0.0, 2.0], [100.0, 104.0]])
    assert group_advantages(rewards, "group_mean").tolist() == [[-1.0, 1.0], [-2.0, 2.0]]
    torch.testing.assert_close(group_advantages(rewards, "group_norm"), torch.tensor([[-1.0, 1.0]] * 2) * 0.5**0.5)


@pytest.mark.parametrize("kind", ["rloo", "group_mean", "group_norm"])
def test_samples_that_are_not_valid_are_as_if_they_were_not_there(kind: GroupKind) -> None:
    rewards = torch.tensor([[1.0, 9e9, 2.0, 6.0], [3.0, 1.0, 4.0, torch.nan]])
    valid = torch.tensor([[True, False, True, True], [True, True, True, False]])
    found = group_advantages(rewards, kind, valid)
    torch.testing.assert_close(found[valid].view(2, 3), group_advantages(rewards[valid].view(2, 3), kind))
    assert not found[~valid].any()


@pytest.mark.parametrize("kind", ["rloo", "group_mean", "group_norm"])
def test_a_sample_with_no_other_to_compare_with_has_no_advantage(kind: GroupKind) -> None:
    valid = torch.tensor([[True, False], [False, False]])
    assert group_advantages(torch.tensor([[5.0, 1.0], [2.0, 3.0]]), kind, valid).tolist() == [[0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("kind", ["rloo", "group_mean", "group_norm"])
def test_group_advantages_ignore_a_shift_and_sum_to_zero(kind: str) -> None:
    rewards = torch.tensor([[0.0, 1.0, 5.0]])
    advantages = group_advantages(rewards, kind)
    torch.testing.assert_close(advantages, group_advantages(rewards + 7, kind))
    assert abs(advantages.sum().item()) < 1e-6


def test_group_advantages_of_single_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="1 a prompt given, at least 2 needed"):
        group_advantages(torch.ones(3, 1), "rloo")


def test_whitened_tokens_have_mean_zero_and_variance_one_over_all_sequences() -> None:
    torch.manual_seed(0)
    values = 5 + 3 * torch.randn(3, 4).double()
    whitened = whiten(values, MASK)[MASK.bool()]
    assert abs(whitened.mean().item()) < 1e-9
    assert whitened.var(unbiased=False).item() == pytest.approx(1.0)


def test_whitening_on_two_ranks_uses_the_statistics_of_both() -> None:
    torch.manual_seed(0)
    values, mask = torch.randn(6, 4).double(), torch.rand(6, 4) > 0.3
    ranks = _on_two_ranks(lambda rank, all_sum: whiten(values[rank::2], mask[rank::2], all_sum))
    together = whiten(values, mask)
    for rank, result in enumerate(ranks):
        torch.testing.assert_close(result, together[rank::2])


def test_the_score_stands_on_the_last_valid_token_and_the_kl_on_every_one() -> None:
    rewards = shape_rewards(torch.tensor([5.0, -20.0, 7.0]), torch.ones(3, 4), MASK, kl_coef=0.5, score_clip=10.0)
    assert rewards.tolist() == [[-0.5, -0.5, -0.5, 4.5], [-0.5, -10.5, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]


def test_advantages_and_returns_carry_no_gradient() -> None:
    leaf = torch.ones(3, 4, requires_grad=True)
    results = [
        shape_rewards(leaf[:, 0], leaf, MASK, kl_coef=0.1),
        *gae(leaf, leaf, MASK, gamma=1.0, lam=0.9),
        discounted_returns(leaf, MASK, gamma=0.9),
        whiten(leaf, MASK),
        group_advantages(leaf, "group_norm"),
    ]
    assert not any(result.requires_grad for result in results)


def _on_two_ranks(function: Callable[[int, Callable[[Tensor], Tensor]], Tensor]) -> list[Tensor]:
    """Run `function(rank, all_sum)` on two threads whose `all_sum` adds up what both bring."""
    barrier, brought, results = threading.Barrier(2, timeout=30), [torch.empty(0)] * 2, [torch.empty(0)] * 2

    def run(rank: int) -> None:
        def all_sum(values: Tensor) -> Tensor:
            brought[rank] = values
            barrier.wait()
            total = brought[0] + brought[1]
            barrier.wait()
            return total

        results[rank] = function(rank, all_sum)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
