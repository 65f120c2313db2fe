"""Losses: what carries a gradient and what does not, closed forms, and that every kind and setting changes the result."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from rlhf_core.methods.online import Aggregation, KlKind
from rlhf_core.objectives.aggregation import aggregate, denominator
from rlhf_core.objectives.distillation import divergence, divergence_and_slope
from rlhf_core.objectives.kl import kl_estimate
from rlhf_core.objectives.logprobs import token_logprobs
from rlhf_core.objectives.policy import CorrectionKind, cispo_loss, gspo_loss, ppo_loss, reinforce_loss, rollout_correction
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

MASK = torch.arange(6) < torch.tensor([[6], [3], [5], [1]])


@pytest.fixture
def tokens() -> dict[str, Tensor]:
    """Log-probs now and when sampled, and advantages, [4, 6] in fp64."""
    torch.manual_seed(1)
    old = -torch.rand(4, 6).double() - 0.1
    return {"logprobs": old + 0.4 * torch.randn(4, 6).double(), "old_logprobs": old, "advantages": torch.randn(4, 6).double()}


def loss_and_gradient(loss: Callable[[Tensor], Tensor], x: Tensor) -> tuple[float, Tensor]:
    leaf = x.clone().requires_grad_()
    value = loss(leaf)
    return value.item(), torch.autograd.grad(value, leaf)[0]


def assert_all_differ(results: dict[str, tuple[float, Tensor]]) -> None:
    """Every pair of settings gives another loss and another gradient."""
    for (name, (loss, gradient)), (other, (other_loss, other_gradient)) in combinations(results.items(), 2):
        assert loss != pytest.approx(other_loss, rel=1e-6), f"{name} and {other} give the same loss"
        assert not torch.allclose(gradient, other_gradient, rtol=1e-6), f"{name} and {other} give the same gradient"


def test_the_ratio_is_exactly_one_on_the_first_on_policy_step_and_the_gradient_that_of_reinforce(
    tokens: dict[str, Tensor],
) -> None:
    logprobs, advantages = tokens["logprobs"].float(), tokens["advantages"].float()
    _, policy_gradient = loss_and_gradient(
        lambda x: aggregate(reinforce_loss(x, x.detach(), advantages, MASK).losses, MASK, "token_mean"), logprobs
    )
    result = ppo_loss(logprobs, logprobs, advantages, MASK, clip_low=0.2, clip_high=0.2)
    assert torch.equal(result.losses, torch.where(MASK, -advantages, 0.0))
    assert result.clipped.sum() == result.approx_kl.abs().sum() == 0
    _, gradient = loss_and_gradient(
        lambda x: aggregate(ppo_loss(x, logprobs, advantages, MASK, clip_low=0.2, clip_high=0.2).losses, MASK, "token_mean"),
        logprobs,
    )
    torch.testing.assert_close(gradient, policy_gradient)


def test_policy_losses_and_their_settings_all_differ(tokens: dict[str, Tensor]) -> None:
    old, advantages = tokens["old_logprobs"], tokens["advantages"]
    losses: dict[str, Callable[[Tensor], Tensor]] = {
        "ppo": lambda x: ppo_loss(x, old, advantages, MASK, clip_low=0.2, clip_high=0.2).losses,
        "ppo_lower": lambda x: ppo_loss(x, old, advantages, MASK, clip_low=0.5, clip_high=0.2).losses,
        "ppo_higher": lambda x: ppo_loss(x, old, advantages, MASK, clip_low=0.2, clip_high=0.4).losses,
        "ppo_unclipped": lambda x: ppo_loss(x, old, advantages, MASK, clip_low=1.0, clip_high=math.inf).losses,
        "ppo_dual": lambda x: ppo_loss(x, old, advantages, MASK, clip_low=0.2, clip_high=0.2, dual_clip=1.1).losses,
        "gspo": lambda x: gspo_loss(x, old, advantages, MASK, clip_low=0.05, clip_high=0.05).losses,
        "gspo_wider": lambda x: gspo_loss(x, old, advantages, MASK, clip_low=0.9, clip_high=0.9).losses,
        "cispo": lambda x: cispo_loss(x, old, advantages, MASK, clip_high=0.1).losses,
        "cispo_wider": lambda x: cispo_loss(x, old, advantages, MASK, clip_high=0.3).losses,
        "reinforce": lambda x: reinforce_loss(x, x.detach(), advantages, MASK).losses,
    }
    assert_all_differ(
        {
            name: loss_and_gradient(lambda x, f=loss: aggregate(f(x), MASK, "token_mean"), tokens["logprobs"])
            for name, loss in losses.items()
        }
    )


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_a_token_beyond_the_bound_on_the_side_of_its_advantage_gets_no_gradient(advantage: float) -> None:
    beyond = torch.tensor([[math.copysign(0.5, advantage)]])
    ones = torch.ones(1, 1)
    _, gradient = loss_and_gradient(
        lambda x: ppo_loss(x, 0 * x, advantage * ones, ones, clip_low=0.2, clip_high=0.2).losses.sum(), beyond
    )
    assert gradient.item() == 0
    _, gradient = loss_and_gradient(
        lambda x: ppo_loss(x, 0 * x, -advantage * ones, ones, clip_low=0.2, clip_high=0.2).losses.sum(), beyond
    )
    assert gradient.item() == pytest.approx(advantage * math.exp(beyond.item()))


def test_dual_clip_bounds_the_loss_of_negative_advantages_only() -> None:
    logprobs, ones = torch.tensor([[3.0, 3.0]]), torch.ones(1, 2)
    advantages = torch.tensor([[-1.0, 1.0]])
    losses = ppo_loss(logprobs, 0 * logprobs, advantages, ones, clip_low=0.2, clip_high=0.2, dual_clip=3.0).losses
    torch.testing.assert_close(losses, torch.tensor([[3.0, -1.2]]))


def test_gspo_moves_every_token_of_a_sequence_by_the_same_amount(tokens: dict[str, Tensor]) -> None:
    advantages = tokens["advantages"][:, :1].expand(4, 6)
    _, gradient = loss_and_gradient(
        lambda x: aggregate(
            gspo_loss(x, tokens["old_logprobs"], advantages, MASK, clip_low=0.9, clip_high=9.0).losses, MASK, "sequence_mean"
        ),
        tokens["logprobs"],
    )
    assert all(row[valid].std(unbiased=False) < 1e-12 for row, valid in zip(gradient, MASK, strict=True))
    assert gradient[0, 0] != 0


def test_cispo_keeps_the_gradient_of_clipped_tokens() -> None:
    logprobs = torch.tensor([[2.0]])
    ones = torch.ones(1, 1)
    _, gradient = loss_and_gradient(lambda x: cispo_loss(x, torch.zeros(1, 1), ones, ones, clip_high=0.5).losses.sum(), logprobs)
    assert gradient.item() == pytest.approx(-1.5)


def test_cispo_weighs_the_logprob_gradient_by_the_ratio_and_does_not_move_the_ratio() -> None:
    ones = torch.ones(1, 1)
    _, gradient = loss_and_gradient(lambda x: cispo_loss(x, 0 * ones, ones, ones, clip_high=0.5).losses.sum(), 0.1 * ones)
    assert gradient.item() == pytest.approx(-math.exp(0.1))


def test_references_and_teachers_carry_no_gradient() -> None:
    reference = torch.full((2,), -3.0, requires_grad=True)
    policy = torch.full((2,), -2.0, requires_grad=True)
    losses = dpo_loss(pairs_of(policy, 2 * policy, reference, reference * 1.5), beta=0.1)
    losses = losses + kto_loss(policy, reference, torch.tensor([1, 0]), kto_reference(reference), beta=0.1)
    losses.sum().backward()
    assert policy.grad is not None
    assert reference.grad is None
    student, teacher = torch.randn(1, 2, 4, requires_grad=True), torch.randn(1, 2, 4, requires_grad=True)
    for kind in ("forward_kl", "reverse_kl"):
        masked_divergences(student, teacher, torch.ones(1, 2), kind).sum().backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_what_weighs_a_gradient_carries_none(tokens: dict[str, Tensor]) -> None:
    constants = {name: tokens[name].clone().requires_grad_() for name in ("old_logprobs", "advantages")}
    logprobs = tokens["logprobs"].clone().requires_grad_()
    old, advantages = constants.values()
    total = (
        ppo_loss(logprobs, old, advantages, MASK, clip_low=0.2, clip_high=0.2).losses
        + gspo_loss(logprobs, old, advantages, MASK, clip_low=0.2, clip_high=0.2).losses
        + cispo_loss(logprobs, old, advantages, MASK, clip_high=0.2).losses
        + reinforce_loss(logprobs, logprobs, advantages, MASK).losses
        + value_loss(logprobs, old, advantages, MASK, clip=0.2)
        + kl_estimate(logprobs, old, "k3")
    ).sum()
    total.backward()
    assert logprobs.grad is not None
    assert old.grad is None
    assert advantages.grad is None
    assert not rollout_correction(logprobs, old, MASK, "truncate", low=0.5, high=2.0).requires_grad


def test_kl_estimates_differ_and_average_to_the_kl_of_the_two_distributions() -> None:
    torch.manual_seed(0)
    policy, reference = torch.log_softmax(torch.randn(2, 7).double(), dim=-1)
    kl = (policy.exp() * (policy - reference)).sum()
    for kind in ("k1", "k3"):
        torch.testing.assert_close((policy.exp() * kl_estimate(policy, reference, kind)).sum(), kl)
    assert_all_differ(
        {kind: loss_and_gradient(lambda x, k=kind: kl_estimate(x, reference, k).sum(), policy) for kind in get_args(KlKind)}
    )


def test_rollout_corrections_treat_a_gap_differently() -> None:
    old, mask = torch.log(torch.tensor([[4.0, 1.0, 1.0], [4.0, 4.0, 4.0]])), torch.ones(2, 3)
    weights = {
        kind: rollout_correction(old, torch.zeros(2, 3), mask, kind, low=0.5, high=2.0) for kind in get_args(CorrectionKind)
    }
    torch.testing.assert_close(weights["truncate"], torch.tensor([[2.0, 1.0, 1.0], [2.0, 2.0, 2.0]]))
    torch.testing.assert_close(weights["mask"], torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 0.0]]))
    torch.testing.assert_close(weights["sequence_mask"], torch.tensor([[4.0, 1.0, 1.0], [0.0, 0.0, 0.0]]))


def test_the_value_clip_bounds_what_one_update_can_gain() -> None:
    values, old, returns, ones = torch.tensor([[0.9]]), torch.zeros(1, 1), torch.ones(1, 1), torch.ones(1, 1)
    assert value_loss(values, old, returns, ones, clip=0.2).item() == pytest.approx(0.8**2 / 2)
    assert value_loss(values, old, returns, ones).item() == pytest.approx(0.1**2 / 2)


def test_aggregations_differ_in_value_and_gradient(tokens: dict[str, Tensor]) -> None:
    assert_all_differ(
        {
            mode: loss_and_gradient(lambda x, m=mode: aggregate(x, MASK, m, 10), tokens["logprobs"])
            for mode in get_args(Aggregation)
        }
    )


def test_constant_length_without_its_constant_is_refused() -> None:
    with pytest.raises(ValueError, match="constant=None with mode 'constant_length'"):
        denominator(MASK, "constant_length")


PAIRS: dict[str, Tensor] = {
    "chosen": torch.tensor([-12.0, -30.0, -8.0]).double(),
    "rejected": torch.tensor([-14.0, -25.0, -7.0]).double(),
    "ref_chosen": torch.tensor([-13.0, -28.0, -9.0]).double(),
    "ref_rejected": torch.tensor([-13.0, -26.0, -9.5]).double(),
}
LENGTHS = {"chosen_lengths": torch.tensor([5.0, 9.0, 3.0]), "rejected_lengths": torch.tensor([7.0, 8.0, 3.0])}


def pairs(x: Tensor) -> Pairs:
    return pairs_of(x, PAIRS["rejected"], PAIRS["ref_chosen"], PAIRS["ref_rejected"], **LENGTHS)


def test_every_preference_loss_and_setting_changes_loss_and_gradient() -> None:
    losses: dict[str, Callable[[Tensor], Tensor]] = {
        "dpo": lambda x: dpo_loss(pairs(x), beta=0.1),
        "dpo_stronger": lambda x: dpo_loss(pairs(x), beta=0.3),
        "dpo_norm": lambda x: dpo_norm_loss(pairs(x), beta=0.1),
        "dpo_norm_stronger": lambda x: dpo_norm_loss(pairs(x), beta=0.3),
        "cdpo": lambda x: dpo_loss(pairs(x), beta=0.1, label_smoothing=0.1),
        "robust": lambda x: robust_loss(pairs(x), beta=0.1, label_smoothing=0.1),
        "robust_more": lambda x: robust_loss(pairs(x), beta=0.1, label_smoothing=0.2),
        "hinge": lambda x: hinge_loss(pairs(x), beta=0.1),
        "hinge_stronger": lambda x: hinge_loss(pairs(x), beta=0.3),
        "ipo": lambda x: ipo_loss(pairs(x), beta=0.1),
        "ipo_stronger": lambda x: ipo_loss(pairs(x), beta=0.3),
        "ipo_sum": lambda x: ipo_sum_loss(pairs(x), beta=0.1),
        "simpo": lambda x: simpo_loss(pairs(x), beta=2.0, gamma=0.5),
        "simpo_margin": lambda x: simpo_loss(pairs(x), beta=2.0, gamma=1.0),
        "orpo": lambda x: orpo_loss(pairs(x), lam=0.25),
        "orpo_stronger": lambda x: orpo_loss(pairs(x), lam=0.5),
        "cpo": lambda x: cpo_loss(pairs(x), beta=0.1),
        "cpo_stronger": lambda x: cpo_loss(pairs(x), beta=0.3),
    }
    assert_all_differ({name: loss_and_gradient(lambda x, f=f: f(x).mean(), PAIRS["chosen"]) for name, f in losses.items()})


ON_MARGINS: dict[str, Callable[[Pairs], Tensor]] = {
    "dpo": partial(dpo_loss, beta=0.1),
    "dpo_norm": partial(dpo_norm_loss, beta=0.1),
    "robust": partial(robust_loss, beta=0.1, label_smoothing=0.0),
    "hinge": partial(hinge_loss, beta=0.1),
    "ipo": partial(ipo_loss, beta=0.1),
    "ipo_sum": partial(ipo_sum_loss, beta=0.1),
}


@pytest.mark.parametrize("loss", ON_MARGINS.values(), ids=ON_MARGINS)
def test_every_preference_loss_falls_as_the_chosen_response_gains_on_an_untrained_policy(loss: Callable[[Pairs], Tensor]) -> None:
    def at_reference(x: Tensor) -> Tensor:
        return loss(pairs_of(x, PAIRS["ref_rejected"], PAIRS["ref_chosen"], PAIRS["ref_rejected"], **LENGTHS)).sum()

    _, gradient = loss_and_gradient(at_reference, PAIRS["ref_chosen"])
    assert (gradient < 0).all()


def test_dpo_starts_at_log_two_and_its_minimum_under_smoothing_is_finite() -> None:
    untrained = pairs_of(PAIRS["chosen"], PAIRS["rejected"], PAIRS["chosen"], PAIRS["rejected"])
    torch.testing.assert_close(dpo_loss(untrained, beta=0.1), torch.full((3,), math.log(2)).double())
    # cDPO wants sigmoid(beta * h) = 1 - smoothing
    best = torch.tensor([math.log(0.9 / 0.1) / 0.1]).double()
    zeros = torch.zeros(1).double()
    _, gradient = loss_and_gradient(lambda x: dpo_loss(pairs_of(x, zeros), beta=0.1, label_smoothing=0.1).sum(), best)
    assert abs(gradient.item()) < 1e-9


def test_robust_dpo_is_unbiased_under_flipped_labels() -> None:
    right = pairs_of(*(PAIRS[name] for name in ("chosen", "rejected", "ref_chosen", "ref_rejected")))
    flipped = pairs_of(*(PAIRS[name] for name in ("rejected", "chosen", "ref_rejected", "ref_chosen")))
    noisy = 0.8 * robust_loss(right, beta=0.1, label_smoothing=0.2) + 0.2 * robust_loss(flipped, beta=0.1, label_smoothing=0.2)
    torch.testing.assert_close(noisy, dpo_loss(right, beta=0.1))


def test_averaged_over_tokens_length_alone_tells_no_answer_from_another() -> None:
    twice = pairs_of(2 * PAIRS["chosen"], PAIRS["rejected"], 2 * PAIRS["ref_chosen"], PAIRS["ref_rejected"])
    longer = replace(twice, chosen_lengths=torch.full((3,), 2.0))
    once = pairs_of(PAIRS["chosen"], PAIRS["rejected"], PAIRS["ref_chosen"], PAIRS["ref_rejected"])
    torch.testing.assert_close(dpo_norm_loss(longer, beta=0.1), dpo_norm_loss(once, beta=0.1))
    assert not torch.allclose(dpo_loss(longer, beta=0.1), dpo_loss(once, beta=0.1))


def test_cpo_is_dpo_under_a_reference_that_finds_all_answers_alike() -> None:
    uniform = torch.full((3,), -3.0).double()
    torch.testing.assert_close(
        cpo_loss(pairs(PAIRS["chosen"]), beta=0.1),
        dpo_loss(pairs_of(PAIRS["chosen"], PAIRS["rejected"], uniform, uniform), beta=0.1),
    )


def test_kto_pulls_desirable_up_and_undesirable_down_around_a_detached_reference_point() -> None:
    policy, reference = torch.tensor([-5.0, -5.0]), torch.tensor([-6.0, -6.0])
    ratios = torch.tensor([2.0, 4.0], requires_grad=True)
    point = kto_reference(ratios)
    assert (point.item(), point.requires_grad) == (3.0, False)
    assert kto_reference(-ratios).item() == 0.0
    losses = kto_loss(
        policy, reference, torch.tensor([True, False]), point, beta=0.5, desirable_weight=2.0, undesirable_weight=3.0
    )
    torch.testing.assert_close(losses, torch.tensor([2 * (1 - 1 / (1 + math.exp(1.0))), 3 * (1 - 1 / (1 + math.exp(-1.0)))]))
    _, gradient = loss_and_gradient(lambda x: kto_loss(x, reference, torch.tensor([1, 0]), point, beta=0.5).sum(), policy)
    assert gradient[0] < 0 < gradient[1]


def test_the_kto_reference_point_is_the_mean_over_all_ranks() -> None:
    other_rank = torch.tensor([9.0, 1.0])  # sum and number of its log-ratios
    assert kto_reference(torch.tensor([1.0, 2.0]), lambda totals: totals + other_rank).item() == 4.0
    assert kto_reference(torch.empty(0)).item() == 0.0


def test_the_pairwise_margin_asks_for_more() -> None:
    chosen, rejected = torch.tensor([2.0]), torch.tensor([1.0])
    assert pairwise_reward_loss(chosen, rejected).item() == pytest.approx(math.log(1 + math.exp(-1)))
    assert pairwise_reward_loss(chosen, rejected, torch.tensor([1.0])).item() == pytest.approx(math.log(2))


def test_distillation_vanishes_at_the_teacher_and_its_kinds_differ() -> None:
    torch.manual_seed(0)
    student, teacher, mask = torch.randn(2, 3, 5).double(), torch.randn(2, 3, 5).double(), torch.ones(2, 3)
    kinds: list[Any] = ["forward_kl", "reverse_kl", "jsd"]
    for kind in kinds:
        assert masked_divergences(teacher, teacher, mask, kind).abs().max() < 1e-12
    assert_all_differ(
        {kind: loss_and_gradient(lambda x, k=kind: masked_divergences(x, teacher, mask, k).sum(), student) for kind in kinds}
    )
    # cross-entropy to the teacher's distribution: softmax(student) - softmax(teacher)
    _, gradient = loss_and_gradient(lambda x: masked_divergences(x, teacher, mask, "forward_kl").sum(), student)
    torch.testing.assert_close(gradient, student.softmax(-1) - teacher.softmax(-1))


def test_the_jensen_shannon_divergence_lies_between_the_two_directions() -> None:
    torch.manual_seed(0)
    student, teacher, mask = torch.randn(2, 3, 5).double(), torch.randn(2, 3, 5).double(), torch.ones(2, 3)
    at = lambda kind, beta=0.5: masked_divergences(student, teacher, mask, kind, beta)  # noqa: E731
    # Divided by beta (or 1 - beta) it becomes the KL from the teacher (to it) at either end: GKD, section 3.
    torch.testing.assert_close(at("jsd", 1e-6) / 1e-6, at("forward_kl"), rtol=1e-4, atol=0)
    torch.testing.assert_close(at("jsd", 1 - 1e-6) / 1e-6, at("reverse_kl"), rtol=1e-4, atol=0)
    assert at("jsd").max() <= math.log(2)
    torch.testing.assert_close(at("jsd"), masked_divergences(teacher, student, mask, "jsd"))


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd"])
def test_the_slope_of_a_divergence_is_its_gradient(kind: Any) -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 7).double(), torch.randn(4, 7).double().log_softmax(-1)
    _, gradient = loss_and_gradient(lambda x: divergence(x.log_softmax(-1), teacher, kind, 0.2).sum(), student)
    value, slope = divergence_and_slope(student.log_softmax(-1), teacher, kind, 0.2)
    torch.testing.assert_close(slope, gradient)
    torch.testing.assert_close(value, divergence(student.log_softmax(-1), teacher, kind, 0.2))


def test_token_logprobs_have_the_gradients_of_their_definition() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 6).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: token_logprobs(x, torch.tensor([0, 5, 2]), 0.7), logits)


def test_bf16_logits_are_reduced_in_fp32() -> None:
    torch.manual_seed(0)
    logits = 10 * torch.randn(4, 1000)
    labels = torch.tensor([0, 1, 2, 3])
    logprobs, entropy = token_logprobs(logits.bfloat16(), labels)
    expected = torch.log_softmax(logits.bfloat16().double(), dim=-1)
    assert logprobs.dtype == entropy.dtype == torch.float32
    torch.testing.assert_close(logprobs.double(), expected.gather(1, labels.unsqueeze(1)).squeeze(1), atol=1e-5, rtol=0)
    torch.testing.assert_close(entropy.double(), -(expected.exp() * expected).sum(-1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_values_are_summed_in_fp32(dtype: torch.dtype) -> None:
    values = torch.full((64, 64), 1.0, dtype=dtype)
    assert aggregate(values, torch.ones(64, 64), "sequence_sum_mean", global_denominator=1.0).item() == 4096.0
