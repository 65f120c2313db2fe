"""Chunked log-probs against the plain formula in float64, values and gradients, in every branch of the code."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rlhf_core.models import head as head_module
from rlhf_core.models import token_logprobs as tl
from rlhf_core.models.head import LogitTransform
from rlhf_core.models.token_logprobs import token_logprobs

ROWS, WIDTH, VOCABULARY = 23, 16, 61
TRANSFORMS = [
    LogitTransform(),
    LogitTransform(temperature=0.6),
    LogitTransform(scale=0.25, temperature=1.7),
    LogitTransform(softcap=3.0),
    LogitTransform(scale=1.5, softcap=2.0, temperature=0.8),
]
FACTORS = torch.linspace(-1, 1, ROWS)
CHUNK_BYTES = 5 * VOCABULARY * 4


@pytest.fixture(autouse=True)
def _several_chunks_and_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_module, "ROWS", 5)
    monkeypatch.setattr(head_module, "WORDS", 16)
    monkeypatch.setattr(head_module, "CPU_ELEMENTS", 5 * VOCABULARY)


def inputs(head_grad: bool, bias: bool, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    generator = torch.Generator().manual_seed(3)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)  # noqa: E731
    hidden, weight = draw(ROWS, WIDTH).requires_grad_(), draw(VOCABULARY, WIDTH).requires_grad_(head_grad)
    offset = draw(VOCABULARY).requires_grad_(head_grad) if bias else None
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
@pytest.mark.parametrize("kept_bytes", [0, 2 * CHUNK_BYTES, 1 << 20], ids=["none kept", "some kept", "all kept"])
@pytest.mark.parametrize("entropy_weight", [0.0, 1.0], ids=["log-probs", "entropies"])
def test_values_and_gradients_are_those_of_the_plain_formula(
    monkeypatch: pytest.MonkeyPatch,
    transform: LogitTransform,
    head_grad: bool,
    bias: bool,
    kept_bytes: int,
    entropy_weight: float,
) -> None:
    monkeypatch.setattr(tl, "KEPT_BYTES", 2 * kept_bytes)
    hidden, weight, offset, ids = inputs(head_grad, bias, torch.float64)
    factors, entropy_factors = FACTORS.double(), entropy_weight * FACTORS.double().flip(0)
    leaves = [hidden] + [t for t in (weight, offset) if head_grad and t is not None]

    logprobs, entropy = token_logprobs(
        hidden, weight, offset, ids, transform, with_entropy=True, entropy_has_grad=entropy_weight > 0
    )
    gradients = torch.autograd.grad((factors * logprobs + entropy_factors * entropy).sum(), leaves)
    expected, expected_entropy = plain(hidden, weight, offset, ids, transform)
    expected_gradients = torch.autograd.grad((factors * expected + entropy_factors * expected_entropy).sum(), leaves)

    torch.testing.assert_close(logprobs, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(entropy, expected_entropy, atol=1e-12, rtol=0)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("head_grad", [False, True])
def test_lower_precisions_stay_close_to_the_plain_formula(dtype: torch.dtype, head_grad: bool) -> None:
    hidden, weight, _, ids = inputs(head_grad, False, dtype)
    leaves = [hidden, weight] if head_grad else [hidden]
    logprobs, _ = token_logprobs(hidden, weight, None, ids, LogitTransform())
    expected, _ = plain(hidden, weight, None, ids, LogitTransform())
    gradients = torch.autograd.grad((FACTORS * logprobs).sum(), leaves)
    expected_gradients = torch.autograd.grad((FACTORS * expected).sum(), leaves)
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(logprobs.double(), expected, atol=tolerance, rtol=0)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        assert gradient.dtype == dtype
        torch.testing.assert_close(gradient, wanted, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("transform", [TRANSFORMS[0], TRANSFORMS[-1]], ids=str)
@pytest.mark.parametrize("head_grad", [False, True])
@pytest.mark.parametrize("promise", [torch.full((ROWS,), -0.25), 0.5 * FACTORS, torch.zeros(ROWS)], ids=["one", "own", "zero"])
def test_a_gradient_known_beforehand_gives_the_same_gradients(
    transform: LogitTransform, head_grad: bool, promise: Tensor
) -> None:
    hidden, weight, offset, ids = inputs(head_grad, True, torch.float64)
    leaves = [t for t in (hidden, weight, offset) if t is not None and t.requires_grad]
    came = 2.0 * promise.double()
    gradients = []
    for expected_grad in (promise, None):
        logprobs, entropy = token_logprobs(
            hidden, weight, offset, ids, transform, with_entropy=True, expected_grad_N=expected_grad
        )
        assert entropy.requires_grad == (expected_grad is None)
        gradients.append(torch.autograd.grad((came * logprobs).sum(), leaves))
    for early, late in zip(*gradients, strict=True):
        torch.testing.assert_close(early, late, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_backward_will_need_changes_no_bit_of_the_log_probs(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    # The first ratio of an on-policy step is exactly 1: scored without gradient, then trained.
    hidden, weight, _, ids = inputs(True, False, dtype)
    with torch.no_grad():
        scored, _ = token_logprobs(hidden, weight, None, ids, LogitTransform())
    late, _ = token_logprobs(hidden, weight, None, ids, LogitTransform(), with_entropy=True)
    early, _ = token_logprobs(hidden, weight, None, ids, LogitTransform(), expected_grad_N=FACTORS)
    frozen, _ = token_logprobs(hidden, weight.detach(), None, ids, LogitTransform())
    monkeypatch.setattr(tl, "KEPT_BYTES", 0)
    again, _ = token_logprobs(hidden, weight, None, ids, LogitTransform())
    assert all(torch.equal(scored, other) for other in (late, early, frozen, again))


def test_a_broken_promise_is_an_error() -> None:
    hidden, weight, _, ids = inputs(True, False)
    logprobs, _ = token_logprobs(hidden, weight, None, ids, LogitTransform(), expected_grad_N=torch.ones(ROWS))
    with pytest.raises(ValueError, match="not the one promised"):
        (FACTORS * logprobs).sum().backward()


@pytest.mark.parametrize("head_grad", [False, True])
def test_a_reported_entropy_has_no_gradient_and_leaves_the_log_prob_gradient_alone(head_grad: bool) -> None:
    hidden, weight, _, ids = inputs(head_grad, False)
    logprobs, entropy = token_logprobs(hidden, weight, None, ids, LogitTransform(), with_entropy=True, entropy_has_grad=False)
    assert not entropy.requires_grad
    alone, none = token_logprobs(hidden, weight, None, ids, LogitTransform())
    assert none is None
    for first, second in zip(torch.autograd.grad(logprobs.sum(), hidden), torch.autograd.grad(alone.sum(), hidden), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("expected_grad", [None, torch.ones(0)], ids=["late", "early"])
@pytest.mark.parametrize("head_grad", [False, True])
def test_without_targets_the_result_is_empty_and_still_reaches_every_parameter(
    head_grad: bool, expected_grad: Tensor | None
) -> None:
    hidden, weight, _, ids = inputs(head_grad, False)
    logprobs, _ = token_logprobs(hidden[:0], weight, None, ids[:0], LogitTransform(), expected_grad_N=expected_grad)
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


@pytest.mark.parametrize("head_grad", [False, True])
def test_words_that_are_ruled_out_count_nothing(head_grad: bool) -> None:
    hidden, weight, offset, _ = inputs(head_grad, True)
    assert offset is not None
    allowed = torch.arange(VOCABULARY) < 20  # every word of the last blocks is ruled out
    ids = torch.arange(ROWS) % 20
    ruled_out = offset.detach().masked_fill(~allowed, -torch.inf).requires_grad_(head_grad)
    logprobs, entropy = token_logprobs(hidden, weight, ruled_out, ids, LogitTransform(), with_entropy=True)
    logits = (hidden.double() @ weight.double().T + offset.double())[:, :20].log_softmax(-1)
    torch.testing.assert_close(logprobs.double(), logits.gather(-1, ids[:, None])[:, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(entropy.double(), -(logits.exp() * logits).sum(-1), atol=1e-5, rtol=0)
    [gradient] = torch.autograd.grad((logprobs + entropy).sum(), hidden)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("expected_grad", [None, torch.ones(ROWS)], ids=["late", "early"])
def test_no_tensor_of_all_logits_is_ever_made(expected_grad: Tensor | None) -> None:
    hidden, weight, _, ids = inputs(True, False)
    with torch.profiler.profile(profile_memory=True, record_shapes=True) as profile:
        token_logprobs(hidden, weight, None, ids, LogitTransform(), expected_grad_N=expected_grad)[0].sum().backward()
    shapes = {tuple(shape) for event in profile.events() for shape in event.input_shapes if len(shape) == 2}
    assert (5, 16) in shapes
    assert not any(rows == ROWS and columns > WIDTH for rows, columns in shapes)
