"""Log-probs of chosen tokens from hidden states, without ever holding logits of more than a chunk of rows.

What backward needs is computed as early as it can be: with the head frozen, one hidden-sized vector a row; with a gradient
known beforehand, the gradients themselves. Otherwise the exponentials of as many rows as fit a budget wait for backward,
and those of the others are computed again.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rlhf_core.models.head import Chunk, Gradients, Head, LogitTransform

# Exponentials that may wait for the backward pass, in bytes.
KEPT_BYTES = 1 << 28
# Between the gradient that was promised and the one that came, as norms, relative to the latter.
PROMISE_TOLERANCE = 1e-4


def token_logprobs(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    token_ids_N: Tensor,
    transform: LogitTransform,
    *,
    with_entropy: bool = False,
    entropy_has_grad: bool = True,
    expected_grad_N: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Log-probs (nats) of `token_ids_N` and, if asked for, the entropies (nats) of the distributions; both fp32 [N].

    `N` may be 0: the results still hang on the graph. `expected_grad_N` promises the gradient of the loss at the log-probs, up
    to one factor: where the head is trained that saves a quarter of the work. The entropies then have no gradient, and
    backward raises `ValueError` where the promise is broken.
    """
    head = Head(weight_VH, bias_V, transform)
    entropy_grad = with_entropy and entropy_has_grad and expected_grad_N is None
    apply: Any = _TokenLogprobs.apply
    logprobs, entropies = apply(
        hidden_NH, weight_VH, bias_V, token_ids_N, expected_grad_N, head, with_entropy, entropy_grad, torch.is_grad_enabled()
    )
    return logprobs, (entropies if with_entropy else None)


class _TokenLogprobs(torch.autograd.Function):
    """Every row's outputs depend on that row's hidden state alone, so a frozen head's backward is a row-wise scaling."""

    @staticmethod
    def forward(  # noqa: PLR0917
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        ids: Tensor,
        expected_grad: Tensor | None,
        head: Head,
        with_entropy: bool,
        entropy_grad: bool,
        grad_enabled: bool,
    ) -> tuple[Tensor, Tensor]:
        head_grad = weight.requires_grad or (bias is not None and bias.requires_grad)
        if not grad_enabled or not (head_grad or hidden.requires_grad):
            plan: _Plan = _Plan(head, hidden)
        elif not head_grad:
            plan = _RowSlopes(head, hidden, entropy_grad)
        elif expected_grad is not None:
            plan = _EarlyGradients(head, hidden, expected_grad)
        else:
            plan = _LateGradients(head, hidden)
        logprobs = torch.empty(len(hidden), dtype=head.dtype, device=hidden.device)
        entropies = torch.empty_like(logprobs)
        scratch = head.scratch(plan.largest)
        for rows in head.chunks(len(hidden)):
            chunk = head.read(hidden[rows], ids[rows], scratch, plan.room(rows), with_entropy)
            logprobs[rows], entropies[rows] = chunk.logprobs, chunk.entropies
            plan.take(chunk, rows, scratch)
        plan.used_room.clear()
        ctx.plan, ctx.entropy_grad = plan, entropy_grad
        if not entropy_grad:
            ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # Let go here, so that the engine may take the gradients over instead of copying them.
        plan, ctx.plan = ctx.plan, None
        gradients = plan.gradients(grads[0], grads[1] if ctx.entropy_grad else None)
        return gradients.hidden, gradients.weight, gradients.bias, None, None, None, None, None, None


class _Plan:
    """What a forward pass leaves for backward; this one nothing."""

    def __init__(self, head: Head, hidden: Tensor) -> None:
        self.head, self.hidden, self.dtype = head, hidden, hidden.dtype
        self.largest = max((rows.stop - rows.start for rows in head.chunks(len(hidden))), default=0)
        # Exponentials that are used at once: every chunk's in the same place.
        self.used_room: list[Tensor] = []

    def room(self, rows: slice) -> list[Tensor]:
        """Where the exponentials of the next chunk, `rows`, are to be, if they are to stay at all."""
        return self.used_room

    def take(self, chunk: Chunk, rows: slice, scratch: Tensor) -> None:
        """Do with the chunk what can be done now."""

    def gradients(self, grad: Tensor, entropy_grad: Tensor | None) -> Gradients:
        """Those of a loss with these gradients at log-probs and entropies, each [N]."""
        raise NotImplementedError


class _RowSlopes(_Plan):
    """The head is frozen: what log-prob and entropy of a row make of its hidden state waits, [N, H] each."""

    def __init__(self, head: Head, hidden: Tensor, entropy_grad: bool) -> None:
        super().__init__(head, hidden)
        self.slopes = torch.empty_like(hidden)
        self.entropy_slopes = torch.empty_like(hidden) if entropy_grad else None
        self.used_room = head.room(self.largest)

    def take(self, chunk: Chunk, rows: slice, scratch: Tensor) -> None:
        ones = torch.ones_like(chunk.logprobs)
        if self.entropy_slopes is not None:
            # Exponentials are used up, and computed again for the second use.
            into = Gradients(self.entropy_slopes[rows])
            self.head.add_gradients(chunk, torch.zeros_like(ones), ones, scratch, into)
            chunk = replace(chunk, exponentials=[])
        self.head.add_gradients(chunk, ones, None, scratch, Gradients(self.slopes[rows]))

    def gradients(self, grad: Tensor, entropy_grad: Tensor | None) -> Gradients:
        hidden = self.slopes * grad[:, None].to(self.dtype)
        if self.entropy_slopes is not None and entropy_grad is not None:
            hidden += self.entropy_slopes * entropy_grad[:, None].to(self.dtype)
        return Gradients(hidden)


class _EarlyGradients(_Plan):
    """The gradient at the log-probs is known up to a factor: all others are computed while the exponentials are there."""

    def __init__(self, head: Head, hidden: Tensor, expected_grad: Tensor) -> None:
        super().__init__(head, hidden)
        self.expected = expected_grad.to(head.dtype)
        self.sums = head.new_gradients(hidden)
        self.used_room = head.room(self.largest)

    def take(self, chunk: Chunk, rows: slice, scratch: Tensor) -> None:
        self.head.add_gradients(chunk, self.expected[rows], None, scratch, self.sums.of(rows))

    def gradients(self, grad: Tensor, entropy_grad: Tensor | None) -> Gradients:
        return self.sums.times(promised_factor(grad, self.expected)).to(self.dtype)


class _LateGradients(_Plan):
    """Nothing is known: exponentials wait as far as the budget goes."""

    def __init__(self, head: Head, hidden: Tensor) -> None:
        super().__init__(head, hidden)
        self.chunks: list[tuple[slice, Chunk]] = []
        self._left_bytes = KEPT_BYTES

    def room(self, rows: slice) -> list[Tensor]:
        head = self.head
        self._left_bytes -= (rows.stop - rows.start) * len(head.weight) * head.dtype.itemsize
        return head.room(rows.stop - rows.start) if self._left_bytes >= 0 else []

    def take(self, chunk: Chunk, rows: slice, scratch: Tensor) -> None:
        self.chunks.append((rows, chunk))

    def gradients(self, grad: Tensor, entropy_grad: Tensor | None) -> Gradients:
        sums, scratch = self.head.new_gradients(self.hidden), self.head.scratch(self.largest)
        for rows, chunk in self.chunks:
            entropy_part = None if entropy_grad is None else entropy_grad[rows]
            self.head.add_gradients(chunk, grad[rows], entropy_part, scratch, sums.of(rows))
        return sums.to(self.dtype)


def promised_factor(grad: Tensor, expected: Tensor) -> float:
    """The number that takes the promised gradient, [N], to the one that came; `ValueError` where there is none."""
    came, promised = grad.double(), expected.double()
    factor = float(came @ promised / (promised @ promised)) if promised.any() else 1.0
    if (came - factor * promised).norm() > PROMISE_TOLERANCE * came.norm():
        raise ValueError("the gradient is not the one promised as expected_grad: correct it or leave it out")
    return factor
