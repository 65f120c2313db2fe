"""Chunked divergences against the plain formula in float64, values and gradients, with every head and every kind."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor

from rlhf_core.models import divergence as module
from rlhf_core.models.divergence import Outputs, token_divergences
from rlhf_core.models.head import Head, LogitTransform
from rlhf_core.objectives.distillation import divergence
from rlhf_core.objectives.logprobs import LOWEST_LOGIT
from rlhf_core.settings.supervised import DistillationKind

ROWS, WIDTH, TEACHER_WIDTH, VOCABULARY = 23, 16, 24, 61
KINDS: tuple[DistillationKind, ...] = get_args(DistillationKind)
TRANSFORMS = [
    LogitTransform(),
    LogitTransform(scale=0.25, temperature=1.7),
    LogitTransform(scale=1.5, softcap=2.0, temperature=0.8),
]
FACTORS = torch.linspace(-1, 1, ROWS, dtype=torch.float64)


@pytest.fixture(autouse=True)
def _several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CPU_ELEMENTS", 5 * VOCABULARY)


def head(width: int, transform: LogitTransform, *, bias: bool, grad: bool, words: int = VOCABULARY, seed: int = 0) -> Head:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_(grad)  # noqa: E731
    return Head(draw(words, width), draw(words) if bias else None, transform)


def hidden(width: int, seed: int) -> Tensor:
    return torch.randn(ROWS, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain_logits(values: Tensor, head: Head) -> Tensor:
    logits = values @ head.weight.T + (0.0 if head.bias is None else head.bias)
    logits = logits * head.transform.scale
    if head.transform.softcap is not None:
        logits = torch.tanh(logits / head.transform.softcap) * head.transform.softcap
    return logits / head.transform.temperature


def plain(student: Tensor, teacher: Tensor, kind: DistillationKind, beta: float) -> Tensor:
    """The definitions in probabilities."""
    q, p = student.softmax(-1), teacher.softmax(-1)
    kl = lambda a, b: (a * (a / b).log()).sum(-1)  # noqa: E731
    if kind == "jsd":
        m = beta * p + (1 - beta) * q
        return beta * kl(p, m) + (1 - beta) * kl(q, m)  # type: ignore[no-any-return]
    return kl(p, q) if kind == "forward_kl" else kl(q, p)  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
@pytest.mark.parametrize("head_grad", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("promised", [False, True], ids=["", "promised"])
def test_values_and_gradients_are_those_of_the_plain_formula(
    kind: DistillationKind, transform: LogitTransform, head_grad: bool, bias: bool, promised: bool
) -> None:
    own, other = hidden(WIDTH, 1).requires_grad_(), hidden(TEACHER_WIDTH, 2)
    student = head(WIDTH, transform, bias=bias, grad=head_grad)
    teacher = head(TEACHER_WIDTH, LogitTransform(temperature=0.7), bias=False, grad=False, seed=5)
    leaves = [own, *(t for t in (student.weight, student.bias) if head_grad and t is not None)]

    promise = FACTORS / 3 if promised else None
    found = token_divergences(Outputs(own, student), Outputs(other, teacher), kind, 0.3, promise)
    expected = plain(plain_logits(own, student), plain_logits(other, teacher), kind, 0.3)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    gradients = torch.autograd.grad((FACTORS * found).sum(), leaves)
    wanted = torch.autograd.grad((FACTORS * expected).sum(), leaves)
    for gradient, want in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, want, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("promise", [None, 2 * FACTORS], ids=["", "promised"])
def test_full_logits_do_as_well_as_a_head(kind: DistillationKind, promise: torch.Tensor | None) -> None:
    own, other = hidden(VOCABULARY, 1).requires_grad_(), hidden(VOCABULARY, 2)
    found = token_divergences(Outputs(own, None), Outputs(other, None), kind, 0.5, promise)
    expected = plain(own, other, kind, 0.5)
    torch.testing.assert_close(found, expected)
    [gradient], [want] = (torch.autograd.grad((FACTORS * values).sum(), own) for values in (found, expected))
    torch.testing.assert_close(gradient, want)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_a_larger_head_stand_for_no_words(kind: DistillationKind) -> None:
    own, other = hidden(WIDTH, 1).requires_grad_(), hidden(TEACHER_WIDTH, 2)
    student = head(WIDTH, LogitTransform(), bias=True, grad=True, words=VOCABULARY + 7)
    teacher = head(TEACHER_WIDTH, LogitTransform(), bias=False, grad=False)
    found = token_divergences(Outputs(own, student), Outputs(other, teacher), kind, 0.5)
    expected = plain(plain_logits(own, student)[:, :VOCABULARY], plain_logits(other, teacher), kind, 0.5)
    torch.testing.assert_close(found, expected)
    gradients, wanted = (torch.autograd.grad(values.sum(), [own, student.weight]) for values in (found, expected))
    for gradient, want in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, want)


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_leave_no_trace_in_bf16(kind: DistillationKind, monkeypatch: pytest.MonkeyPatch) -> None:
    own, other = hidden(WIDTH, 1).bfloat16().requires_grad_(), hidden(TEACHER_WIDTH, 2).bfloat16()
    weight, other_weight = (head(width, LogitTransform(), bias=False, grad=False).weight for width in (WIDTH, TEACHER_WIDTH))
    student, teacher = weight.bfloat16().requires_grad_(), other_weight.bfloat16()
    found = {}
    for rows in (5, ROWS):
        monkeypatch.setattr(module, "CPU_ELEMENTS", rows * VOCABULARY)
        heads = (Head(tensor, None, LogitTransform()) for tensor in (student, teacher))
        values = token_divergences(*map(Outputs, (own, other), heads), kind, 0.5)
        assert values.dtype == torch.float32
        found[rows] = [values.detach(), *torch.autograd.grad(values.sum(), [own, student])]
    for one, other_cut in zip(*found.values(), strict=True):
        assert one.dtype == other_cut.dtype
        assert (one.double() - other_cut.double()).norm() <= 2**-8 * one.double().norm()
    expected = plain(own.double() @ student.double().T, other.double() @ teacher.double().T, kind, 0.5)
    torch.testing.assert_close(found[5][0].double(), expected.detach(), rtol=3e-2, atol=3e-2)


def test_a_promise_that_is_broken_is_an_error_and_without_gradients_none_is_asked() -> None:
    own, other = hidden(WIDTH, 1).requires_grad_(), hidden(TEACHER_WIDTH, 2)
    student, teacher = (head(width, LogitTransform(), bias=False, grad=False) for width in (WIDTH, TEACHER_WIDTH))
    values = token_divergences(Outputs(own, student), Outputs(other, teacher), "jsd", 0.5, FACTORS)
    with pytest.raises(ValueError, match="not the one promised"):
        values.sum().backward()
    with torch.no_grad():
        again = token_divergences(Outputs(own, student), Outputs(other, teacher), "jsd", 0.5, FACTORS)
    torch.testing.assert_close(again, values.detach())


def test_no_rows_still_hang_on_the_graph() -> None:
    own = torch.empty(0, WIDTH, dtype=torch.float64, requires_grad=True)
    student = head(WIDTH, LogitTransform(), bias=False, grad=True)
    teacher = Outputs(torch.empty(0, WIDTH, dtype=torch.float64), head(WIDTH, LogitTransform(), bias=False, grad=False))
    token_divergences(Outputs(own, student), teacher, "jsd", 0.5).sum().backward()
    assert student.weight.grad is not None
    assert not student.weight.grad.any()


def test_only_hidden_states_wait_for_the_backward_pass() -> None:
    own = hidden(WIDTH, 1).requires_grad_()
    student, teacher = (head(WIDTH, LogitTransform(), bias=False, grad=False, seed=seed) for seed in (0, 1))
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor.numel()), lambda kept: kept):
        token_divergences(Outputs(own, student), Outputs(hidden(WIDTH, 2), teacher), "reverse_kl", 0.5)
    assert all(numbers < ROWS * VOCABULARY for numbers in saved)


@pytest.mark.parametrize("kind", KINDS)
def test_words_that_are_ruled_out_leave_everything_finite(kind: DistillationKind) -> None:
    student = torch.tensor([[1.0, 2.0, float("-inf")], [0.0, 1.0, 2.0]], requires_grad=True)
    teacher = torch.tensor([[1.0, 2.0, 3.0], [0.0, float("-inf"), 1.0]])
    values = token_divergences(Outputs(student, None), Outputs(teacher, None), kind, 0.5)
    values.sum().backward()
    assert values.isfinite().all()
    assert student.grad is not None and student.grad.isfinite().all()
    plain = (logits.detach().clamp(min=LOWEST_LOGIT).log_softmax(-1) for logits in (student, teacher))
    torch.testing.assert_close(values.detach(), divergence(*plain, kind))
