"""Divergence of a student from a teacher at chosen places, without ever holding logits of more than a chunk of rows.

Where the gradient at the divergences is known beforehand, all others are computed with them. Otherwise only hidden states wait for the
backward pass: there the logits of both are computed again, chunk by chunk.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rlhf_core.models.head import Gradients, Head
from rlhf_core.models.token_logprobs import promised_factor
from rlhf_core.objectives.aggregation import widened
from rlhf_core.objectives.distillation import divergence, divergence_and_slope
from rlhf_core.objectives.logprobs import LOWEST_LOGIT
from rlhf_core.settings.supervised import DistillationKind

# So many logits at a time: 64 MiB of them in fp32, 256 MiB on a GPU. Half a dozen tensors of that size are there at once: logits and
# log-probs of both models, and what is made of them.
CPU_ELEMENTS, GPU_ELEMENTS = 1 << 24, 1 << 26


@dataclass(frozen=True, slots=True)
class Outputs:
    """Next-token distributions at N places: hidden states [N, H] under `head`, or logits [N, V] where that is None."""

    values: Tensor
    head: Head | None

    @property
    def n_words(self) -> int:
        """Size of the vocabulary."""
        return self.values.shape[-1] if self.head is None else len(self.head.weight)

    def of_words(self, n_words: int) -> Outputs:
        """The same over the first words only; rows of a head beyond the tokenizer's tokens stand for none."""
        if n_words == self.n_words:
            return self
        if self.head is None:
            return Outputs(self.values[:, :n_words], None)
        bias = None if self.head.bias is None else self.head.bias[:n_words]
        return Outputs(self.values, replace(self.head, weight=self.head.weight[:n_words], bias=bias))

    def logits(self, rows: slice) -> Tensor:
        """Logits of some rows, [C, V], in fp32 or better; words that are ruled out have a finite one."""
        logits = widened(self.values[rows]) if self.head is None else self.head.logits(self.values[rows])
        return logits.clamp(min=LOWEST_LOGIT)


def token_divergences(
    student: Outputs, teacher: Outputs, kind: DistillationKind, beta: float, expected_grad_N: Tensor | None = None
) -> Tensor:
    """`divergence` at N places, nats, fp32 [N], over the words that both have; the teacher carries no gradient.

    `N` may be 0: the result still hangs on the graph. `expected_grad_N` promises the gradient of the loss at the divergences, up to one
    factor, which saves a third of the work; backward raises `ValueError` where the promise is broken.
    """
    n_words = min(student.n_words, teacher.n_words)
    student, teacher = student.of_words(n_words), teacher.of_words(n_words)
    weight, bias = (None, None) if student.head is None else (student.head.weight, student.head.bias)
    apply: Any = _TokenDivergences.apply
    expected = expected_grad_N if torch.is_grad_enabled() else None
    values: Tensor = apply(student.values, weight, bias, student, teacher, kind, beta, expected)
    return values


class _TokenDivergences(torch.autograd.Function):
    """Every row's value depends on that row's hidden state and the head; gradients are summed in fp32 or better."""

    @staticmethod
    def forward(  # noqa: PLR0917
        ctx: Any,
        values: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        student: Outputs,
        teacher: Outputs,
        kind: DistillationKind,
        beta: float,
        expected: Tensor | None,
    ) -> Tensor:
        ctx.pull = _Pull(student, teacher, kind, beta, weight is not None and (weight.requires_grad or _requires_grad(bias)))
        ctx.expected = expected
        found = values.new_empty(len(values), dtype=torch.promote_types(values.dtype, torch.float32))
        if expected is not None:
            ctx.sums = ctx.pull.gradients(expected.to(found.dtype), found)
            return found
        for rows in _chunks(student):
            found[rows] = divergence(student.logits(rows).log_softmax(-1), teacher.logits(rows).log_softmax(-1), kind, beta)
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.expected is None:
            sums = ctx.pull.gradients(grads[0])
        else:
            # Let go here, so that the engine may take the gradients over instead of copying them.
            sums, ctx.sums = ctx.sums.times(promised_factor(grads[0], ctx.expected)), None
        gradients = sums.to(ctx.pull.student.values.dtype)
        return gradients.hidden, gradients.weight, gradients.bias, None, None, None, None, None


@dataclass(frozen=True, slots=True)
class _Pull:
    """From gradients at the divergences to those at hidden states and head."""

    student: Outputs
    teacher: Outputs
    kind: DistillationKind
    beta: float
    head_grad: bool

    def gradients(self, grad: Tensor, found: Tensor | None = None) -> Gradients:
        """Those of a loss with `grad` [N] at the divergences, which are written into `found` [N] on the way, if that is given."""
        student, head = self.student, self.student.head
        sums = head.new_gradients(student.values) if head is not None and self.head_grad else None
        sums = sums or Gradients(torch.empty_like(student.values))
        for rows in _chunks(student):
            logits, teacher = student.logits(rows), self.teacher.logits(rows).log_softmax(-1)
            values, gradient = divergence_and_slope(logits.log_softmax(-1), teacher, self.kind, self.beta)
            gradient.mul_(grad[rows, None])
            if found is not None:
                found[rows] = values
            if head is None:
                sums.hidden[rows] = gradient
            else:
                head.pull_back(student.values[rows], logits, gradient, sums.of(rows))
        return sums


def _requires_grad(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.requires_grad


def _chunks(outputs: Outputs) -> list[slice]:
    """Ranges of rows to be taken at a time; they cover all rows."""
    size = max(1, (GPU_ELEMENTS if outputs.values.is_cuda else CPU_ELEMENTS) // outputs.n_words)
    n_rows = len(outputs.values)
    return [slice(start, min(start + size, n_rows)) for start in range(0, n_rows, size)]
