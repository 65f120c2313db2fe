"""Chunked log-probs against the plain formula in float64, values and gradients, in every branch of the code."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rlhf_core.models import token_logprobs as tl
from rlhf_core.models.token_logprobs import LogitTransform, token_logprobs

ROWS, WIDTH, VOCABULARY = 23, 16, 61
TRANSFORMS = [
    LogitTransform(),
    LogitTransform(temperature=0.6),
    LogitTransform(scale=0.25, temperature=1.7),
    LogitTransform(softcap=3.0),
    LogitTransform(scale=1.5, softcap=2.0, temperature=0.8),
]


def inputs(head_grad: bool, bias: bool) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(ROWS, WIDTH, generator=generator, requires_grad=True)
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator).requires_grad_(head_grad)
    offset = torch.randn(VOCABULARY, generator=generator).requires_grad_(head_grad) if bias else None
    return hidden, weight, offset, torch.randint(VOCABULARY, (ROWS,), generator=generator)


def plain(hidden: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor, transform: LogitTransform) -> tuple[Tensor, Tensor]:
    logits = hidden.double() @ weight.double().T + (0.0 if bias is None else bias.double())
    logits = logits * transform.scale
    if transform.softcap is not None:
        logits = torch.tanh(logits / transform.softcap) * transform.softcap
    every = torch.log_softmax(logits / transform.temperature, dim=-1)
    return every.gather(-1, ids[:, None])[:, 0], -(every.exp() * every).sum(-1)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
@pytest.mark.parametrize("head_grad", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_values_and_gradients_are_those_of_the_plain_formula(
    monkeypatch: pytest.MonkeyPatch, transform: LogitTransform, head_grad: bool, bias: bool
) -> None:
    monkeypatch.setattr(tl, "CHUNK_ELEMENTS", 5 * VOCABULARY)
    hidden, weight, offset, ids = inputs(head_grad, bias)
    factors = torch.linspace(-1, 1, ROWS)
    leaves = [hidden] + [t for t in (weight, offset) if head_grad and t is not None]

    logprobs, entropy = token_logprobs(hidden, weight, offset, ids, transform, with_entropy=True)
    gradients = torch.autograd.grad((factors * logprobs + factors.flip(0) * entropy).sum(), leaves)
    expected, expected_entropy = plain(hidden, weight, offset, ids, transform)
    expected_gradients = torch.autograd.grad((factors * expected + factors.flip(0) * expected_entropy).sum(), leaves)

    torch.testing.assert_close(logprobs.double(), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(entropy.double(), expected_entropy, atol=1e-5, rtol=0)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("head_grad", [False, True])
def test_a_reported_entropy_has_no_gradient_and_leaves_the_log_prob_gradient_alone(head_grad: bool) -> None:
    hidden, weight, _, ids = inputs(head_grad, False)
    logprobs, entropy = token_logprobs(hidden, weight, None, ids, LogitTransform(), with_entropy=True, entropy_has_grad=False)
    assert not entropy.requires_grad
    alone, none = token_logprobs(hidden, weight, None, ids, LogitTransform())
    assert none is None
    for first, second in zip(torch.autograd.grad(logprobs.sum(), hidden), torch.autograd.grad(alone.sum(), hidden), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("head_grad", [False, True])
def test_without_targets_the_result_is_empty_and_still_reaches_every_parameter(head_grad: bool) -> None:
    hidden, weight, _, ids = inputs(head_grad, False)
    logprobs, _ = token_logprobs(hidden[:0], weight, None, ids[:0], LogitTransform())
    leaves = [hidden, weight] if head_grad else [hidden]
    for gradient in torch.autograd.grad(logprobs.sum(), leaves):
        assert torch.count_nonzero(gradient) == 0


def test_extreme_logits_stay_finite_in_bf16() -> None:
    hidden = torch.tensor([[200.0], [-200.0]], dtype=torch.bfloat16, requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0], [0.0]], dtype=torch.bfloat16)
    logprobs, entropy = token_logprobs(hidden, weight, None, torch.tensor([0, 0]), LogitTransform(), with_entropy=True)
    (logprobs.sum() + entropy.sum()).backward()
    assert logprobs.dtype == torch.float32
    torch.testing.assert_close(logprobs.detach(), torch.tensor([0.0, -400.0]))
    assert torch.isfinite(hidden.grad).all()


def test_no_tensor_of_all_logits_is_ever_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tl, "CHUNK_ELEMENTS", 4 * VOCABULARY)
    hidden, weight, _, ids = inputs(True, False)
    with torch.profiler.profile(profile_memory=True, record_shapes=True) as profile:
        token_logprobs(hidden, weight, None, ids, LogitTransform(), with_entropy=True)[0].sum().backward()
    shapes = {tuple(shape) for event in profile.events() for shape in event.input_shapes if len(shape) == 2}
    assert (4, VOCABULARY) in shapes
    assert (ROWS, VOCABULARY) not in shapes
