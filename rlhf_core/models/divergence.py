"""Divergence of a student from a teacher at chosen places, without ever holding logits of more than a chunk of rows.

Only hidden states wait for the backward pass: there the logits of both are computed again, chunk by chunk.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rlhf_core.models.head import Gradients, Head
from rlhf_core.objectives.aggregation import widened
from rlhf_core.objectives.distillation import divergence, slope
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


def token_divergences(student: Outputs, teacher: Outputs, kind: DistillationKind, beta: float) -> Tensor:
    """`divergence` at N places, nats, fp32 [N], over the words that both have; the teacher carries no gradient.

    `N` may be 0: the result still hangs on the graph.
    """
    n_words = min(student.n_words, teacher.n_words)
    student, teacher = student.of_words(n_words), teacher.of_words(n_words)
    weight, bias = (None, None) if student.head is None else (student.head.weight, student.head.bias)
    apply: Any = _TokenDivergences.apply
    values: Tensor = apply(student.values, weight, bias, student, teacher, kind, beta)
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
    ) -> Tensor:
        ctx.student, ctx.teacher, ctx.kind, ctx.beta = student, teacher, kind, beta
        ctx.head_grad = weight is not None and (weight.requires_grad or (bias is not None and bias.requires_grad))
        found = values.new_empty(len(values), dtype=torch.promote_types(values.dtype, torch.float32))
        for rows in _chunks(student):
            found[rows] = divergence(student.logits(rows).log_softmax(-1), teacher.logits(rows).log_softmax(-1), kind, beta)
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        student, head, grad = ctx.student, ctx.student.head, grads[0]
        sums = head.new_gradients(student.values) if ctx.head_grad else Gradients(torch.empty_like(student.values))
        for rows in _chunks(student):
            logits, teacher = student.logits(rows), ctx.teacher.logits(rows).log_softmax(-1)
            gradient = slope(logits.log_softmax(-1), teacher, ctx.kind, ctx.beta).mul_(grad[rows, None])
            if head is None:
                sums.hidden[rows] = gradient
            else:
                head.pull_back(student.values[rows], logits, gradient, sums.of(rows))
        gradients = sums.to(student.values.dtype)
        return gradients.hidden, gradients.weight, gradients.bias, None, None, None, None


def _chunks(outputs: Outputs) -> list[slice]:
    """Ranges of rows to be taken at a time; they cover all rows."""
    size = max(1, (GPU_ELEMENTS if outputs.values.is_cuda else CPU_ELEMENTS) // outputs.n_words)
    n_rows = len(outputs.values)
    return [slice(start, min(start + size, n_rows)) for start in range(0, n_rows, size)]
