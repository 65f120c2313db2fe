"""Importance weights towards bad responses, and the proposal's advantages: what may change nothing, and where training ends."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rlhf_core.objectives.advantages import Earned, returns_less_others
from rlhf_core.objectives.aggregation import aggregate
from rlhf_core.objectives.policy import reinforce_loss
from rlhf_core.objectives.twisted import (
    contrastive_advantages,
    effective_samples,
    importance_log_weights,
    less_exponential,
    less_indicator,
    negative_advantages,
    returns_less_others_and_bad,
    self_normalised,
    target_weights,
    twist_weights,
)

P, K, T = 3, 4, 5
ALL = torch.ones(P * K, dtype=torch.bool)


class Drawn:
    """Random responses of P prompts: log-probs under both policies, lengths, rewards."""

    def __init__(self, seed: int) -> None:
        random = torch.Generator().manual_seed(seed)
        self.p, self.q = (-3 * torch.rand(P * K, T, generator=random, dtype=torch.float64) for _ in range(2))
        lengths = torch.randint(1, T + 1, (P * K, 1), generator=random)
        self.mask = (torch.arange(T) < lengths).double()
        self.rewards = 4 * torch.randn(P * K, generator=random, dtype=torch.float64)
        self.noise = torch.randn(P * K, T, generator=random, dtype=torch.float64)

    def weights(self, beta: float = -0.7, valid: Tensor = ALL) -> Tensor:
        logs = importance_log_weights(self.rewards, beta, self.p, self.q, self.mask)
        return self_normalised(logs, K, valid)

    def advantages(self, beta: float = -0.7, valid: Tensor = ALL) -> Tensor:
        twists = twist_weights(self.p, self.q, self.mask, K, valid)
        return contrastive_advantages(self.weights(beta, valid), twists, self.mask)


seeds = st.integers(0, 10_000)


@given(seeds)
def test_what_stands_behind_a_response_changes_nothing(seed: int) -> None:
    plain, other = Drawn(seed), Drawn(seed)
    other.p, other.q = (torch.where(other.mask.bool(), own, other.noise * 100) for own in (other.p, other.q))
    torch.testing.assert_close(other.weights(), plain.weights(), rtol=0, atol=0)
    torch.testing.assert_close(other.advantages(), plain.advantages(), rtol=0, atol=0)


@given(seeds, st.permutations(range(K)))
def test_the_order_of_a_prompts_samples_changes_nothing(seed: int, order: list[int]) -> None:
    plain, other = Drawn(seed), Drawn(seed)
    places = torch.tensor([prompt * K + i for prompt in range(P) for i in order])
    other.p, other.q, other.mask, other.rewards = (x[places] for x in (other.p, other.q, other.mask, other.rewards))
    torch.testing.assert_close(other.weights(), plain.weights()[:, order])
    torch.testing.assert_close(other.advantages(), plain.advantages()[places])


@given(seeds)
def test_prompts_are_apart(seed: int) -> None:
    plain, other = Drawn(seed), Drawn(seed)
    other.p[K:], other.q[K:], other.rewards[K:] = other.noise[K:], -other.noise[K:], 9.0
    torch.testing.assert_close(other.advantages()[:K], plain.advantages()[:K], rtol=0, atol=0)


@given(seeds, st.floats(-5, 5))
def test_a_shift_of_all_rewards_changes_no_weight(seed: int, shift: float) -> None:
    plain, other = Drawn(seed), Drawn(seed)
    other.rewards = other.rewards + shift
    torch.testing.assert_close(other.weights(), plain.weights())


@given(seeds)
def test_weights_sum_to_one_and_first_tokens_weigh_alike(seed: int) -> None:
    drawn = Drawn(seed)
    torch.testing.assert_close(drawn.weights().sum(1), torch.ones(P, dtype=torch.float64))
    twists = twist_weights(drawn.p, drawn.q, drawn.mask, K, ALL).view(P, K, T)
    torch.testing.assert_close(twists[..., 0], torch.full((P, K), 1 / K, dtype=torch.float64))
    torch.testing.assert_close(twists.sum(1), torch.ones(P, T, dtype=torch.float64))
    assert (effective_samples(drawn.weights()) >= 1 - 1e-12).all() and (effective_samples(drawn.weights()) <= K + 1e-12).all()


@given(seeds)
def test_a_response_without_a_reward_takes_no_part(seed: int) -> None:
    drawn, valid = Drawn(seed), ALL.clone()
    valid[[0, *range(K, 2 * K)]] = False  # one of the first prompt, all of the second
    weights, advantages = drawn.weights(valid=valid), drawn.advantages(valid=valid)
    torch.testing.assert_close(weights.sum(1), torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64))
    assert weights[0, 0] == 0 and not advantages[~valid].any() and advantages.isfinite().all()
    assert effective_samples(weights)[1] == 0
    alone = self_normalised(importance_log_weights(drawn.rewards, -0.7, drawn.p, drawn.q, drawn.mask)[1:K], K - 1, ALL[: K - 1])
    torch.testing.assert_close(weights[0, 1:], alone[0])


def test_nothing_here_has_a_gradient() -> None:
    drawn = Drawn(1)
    drawn.p.requires_grad_(), drawn.q.requires_grad_(), drawn.rewards.requires_grad_()
    assert not drawn.weights().requires_grad and not drawn.advantages().requires_grad
    assert not less_exponential(drawn.rewards, 1.0, -1.0).requires_grad


@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_rewards_stay_finite(sign: float, dtype: torch.dtype) -> None:
    drawn = Drawn(2)
    drawn.p, drawn.q, drawn.mask = (x.to(dtype) for x in (drawn.p, drawn.q, drawn.mask))
    drawn.rewards = torch.linspace(-300, 300, P * K).to(dtype)
    assert drawn.weights(sign).isfinite().all() and drawn.advantages(sign).isfinite().all()
    transformed = less_exponential(drawn.rewards, 10.0, sign)
    assert transformed.dtype == torch.float32 and (1e4 * transformed).square().sum().isfinite()


def test_an_indicator_takes_off_what_is_below() -> None:
    assert less_indicator(torch.tensor([-6.0, -5.0, 1.0]), 2.0, -5.0).tolist() == [-8.0, -5.0, 1.0]


def test_the_sum_over_samples_is_k_times_their_mean() -> None:
    weights = Drawn(3).weights()
    mean, total = (negative_advantages(weights, 0.1, how) for how in ("mean_k", "sum_k"))  # type: ignore[arg-type]
    torch.testing.assert_close(total, K * mean)
    assert mean.sum().item() == pytest.approx(-0.1 * P)


def test_samples_that_are_not_bad_count_nothing_and_nobody_for_them() -> None:
    drawn = Drawn(4)
    logs = importance_log_weights(drawn.rewards, -0.7, drawn.p, drawn.q, drawn.mask)
    plain = target_weights(logs, drawn.rewards, K, ALL, uniform=False, below=None)
    bad = target_weights(logs, drawn.rewards, K, ALL, uniform=False, below=0.0)
    is_bad = (drawn.rewards < 0).view(P, K)
    torch.testing.assert_close(bad, torch.where(is_bad, plain, 0.0))
    none = target_weights(logs, drawn.rewards, K, ALL, uniform=False, below=-1e9)
    assert not none.any()
    assert set(target_weights(logs, drawn.rewards, K, ALL, uniform=True, below=None).flatten().tolist()) == {1 / K}


def test_a_policy_that_proposes_to_itself_weighs_by_rewards_alone() -> None:
    drawn = Drawn(5)
    earned = Earned(drawn.noise * drawn.mask, drawn.mask, ALL, None, K, scores=drawn.rewards)
    settings = {"beta": -0.7, "reduction": "mean_k", "weights": "importance"}
    found = returns_less_others_and_bad(earned, gamma=1.0, alpha=0.3, **settings).advantages  # type: ignore[arg-type]
    plain = returns_less_others(earned, gamma=1.0).advantages
    wanted = -0.3 * torch.softmax(-0.7 * drawn.rewards.view(P, K), 1).reshape(-1, 1) * drawn.mask
    torch.testing.assert_close(found - plain, wanted)


@pytest.mark.parametrize(("samples", "bound"), [(5, 5e-3), (64, 2e-4)])
def test_a_proposal_that_learns_comes_to_the_target(samples: int, bound: float) -> None:
    """The two-token target of the vectors: KL(sigma || q) falls from 0.67 to almost nothing, by samples of q alone."""
    p1, p2 = (
        torch.tensor([1.0, 0.5, -1.0]).double().log_softmax(0),
        (torch.tensor([[0.2, 0.0, -0.7], [1.0, -1.0, 0.3], [0.0, 0.0, 0.0]]).double().log_softmax(1)),
    )
    rewards = torch.tensor([[2.0, 1.0, -3.0], [1.5, 0.5, -2.5], [-4.0, -3.5, -5.0]]).double()
    sigma = (p1[:, None] + p2 - 0.5 * rewards).flatten().softmax(0).view(3, 3)
    logits1, logits2 = p1.clone().requires_grad_(), p2.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits1, logits2], lr=0.02)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, total_iters=1200)
    random, prompts = torch.Generator().manual_seed(0), 8
    count = prompts * samples

    def kl() -> float:
        joint = (logits1.log_softmax(0)[:, None] + logits2.log_softmax(1)).detach()
        return float((sigma * (sigma.log() - joint)).sum())

    assert kl() == pytest.approx(0.67, abs=0.01)
    for _ in range(1500):
        q1, q2 = logits1.log_softmax(0), logits2.log_softmax(1)
        first = torch.multinomial(q1.detach().exp(), count, replacement=True, generator=random)
        second = torch.multinomial(q2.detach().exp()[first], 1, generator=random)[:, 0]
        q, p = (torch.stack([one[first], two[first, second]], 1) for one, two in ((q1, q2), (p1, p2)))
        mask, valid = torch.ones_like(p), torch.ones(count, dtype=torch.bool)
        weights = self_normalised(importance_log_weights(rewards[first, second], -0.5, p, q, mask), samples, valid)
        advantages = contrastive_advantages(weights, twist_weights(p, q, mask, samples, valid), mask)
        optimizer.zero_grad()
        aggregate(reinforce_loss(q, q.detach(), advantages, mask).losses, mask, "sequence_mean").backward()
        optimizer.step()
        schedule.step()
    assert kl() < bound
