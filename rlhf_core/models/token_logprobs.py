"""Log-probs of chosen tokens from hidden states, without ever holding logits of more than a chunk of rows.

The head is applied chunk by chunk and the log-sum-exp is taken in fp32. What backward needs is either kept small (one
hidden-sized vector a row, when the head itself is frozen) or computed again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

# fp32 logits of one chunk: 64 MiB.
CHUNK_ELEMENTS = 1 << 24


@dataclass(frozen=True, slots=True)
class LogitTransform:
    """From the head's output to logits: multiply by `scale`, cap softly at +-`softcap`, divide by `temperature`."""

    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0


def token_logprobs(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    token_ids_N: Tensor,
    transform: LogitTransform,
    *,
    with_entropy: bool = False,
    entropy_has_grad: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Log-probs (nats) of `token_ids_N` and, if asked for, the entropies (nats) of the distributions; both fp32 [N].

    `N` may be 0: the results still hang on the graph.
    """
    entropy_grad = with_entropy and entropy_has_grad
    apply: Any = _TokenLogprobs.apply
    logprobs, entropy = apply(
        hidden_NH, weight_VH, bias_V, token_ids_N, transform, with_entropy, entropy_grad, torch.is_grad_enabled()
    )
    return logprobs, (entropy if with_entropy else None)


class _TokenLogprobs(torch.autograd.Function):
    """Every row's outputs depend on that row's hidden state alone, so backward is a row-wise scaling of fixed vectors."""

    @staticmethod
    def forward(  # noqa: PLR0917
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        ids: Tensor,
        transform: LogitTransform,
        with_entropy: bool,
        entropy_grad: bool,
        grad_enabled: bool,
    ) -> tuple[Tensor, Tensor]:
        head_grad = weight.requires_grad or (bias is not None and bias.requires_grad)
        keep = grad_enabled and hidden.requires_grad and not head_grad
        logprobs = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        entropy = torch.zeros_like(logprobs)
        slope = torch.empty_like(hidden) if keep else None
        entropy_slope = torch.empty_like(hidden) if keep and entropy_grad else None
        for rows in _chunks(len(hidden), len(weight)):
            chunk = _Chunk(hidden[rows], weight, bias, ids[rows], transform)
            logprobs[rows] = chunk.logprobs
            if with_entropy:
                entropy[rows] = chunk.entropy()
            if entropy_slope is not None:
                entropy_slope[rows] = chunk.entropy_gradient() @ weight
            if slope is not None:
                slope[rows] = chunk.logprob_gradient() @ weight
        ctx.transform, ctx.entropy_grad, ctx.head_grad = transform, entropy_grad, head_grad
        if head_grad and grad_enabled:
            ctx.save_for_backward(hidden, weight, bias, ids)
        else:
            ctx.save_for_backward(slope, entropy_slope)
        if not entropy_grad:
            ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad, entropy_grad = grads[0], (grads[1] if ctx.entropy_grad else None)
        if ctx.head_grad:
            return *_head_gradients(ctx, grad, entropy_grad), None, None, None, None, None
        slope, entropy_slope = ctx.saved_tensors
        grad_hidden = slope * grad[:, None].to(slope.dtype)
        if entropy_grad is not None:
            grad_hidden += entropy_slope * entropy_grad[:, None].to(slope.dtype)
        return grad_hidden, None, None, None, None, None, None, None


def _head_gradients(ctx: Any, grad: Tensor, entropy_grad: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of hidden states, weight and bias; the logits are computed again."""
    hidden, weight, bias, ids = ctx.saved_tensors
    grad_hidden = torch.empty_like(hidden)
    # Chunks are added up in fp32, so that how many there are leaves no trace in a bf16 gradient.
    grad_weight = torch.zeros_like(weight, dtype=torch.float32)
    grad_bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
    for rows in _chunks(len(hidden), len(weight)):
        chunk = _Chunk(hidden[rows], weight, bias, ids[rows], ctx.transform)
        logit_grad = chunk.entropy_gradient(entropy_grad[rows]) if entropy_grad is not None else 0.0
        logit_grad = chunk.logprob_gradient(grad[rows]) + logit_grad
        grad_hidden[rows] = logit_grad @ weight
        grad_weight += logit_grad.T @ hidden[rows]
        if grad_bias is not None:
            grad_bias += logit_grad.sum(0, dtype=torch.float32)
    return grad_hidden, grad_weight.to(weight.dtype), None if bias is None or grad_bias is None else grad_bias.to(bias.dtype)


class _Chunk:
    """The distributions of a few rows, as normalised fp32 log-probs [C, V]; gradients come in the head's precision."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor, transform: LogitTransform) -> None:
        self._dtype = weight.dtype
        self._ids = ids[:, None]
        # d logit / d head output: a number, or [C, V] where a soft cap makes it differ.
        self._chain: float | Tensor = transform.scale / transform.temperature
        logits = functional.linear(hidden, weight, bias).float()
        if transform.scale != 1.0:
            logits *= transform.scale
        if transform.softcap is not None:
            logits.div_(transform.softcap).tanh_()
            self._chain = logits.square().neg_().add_(1.0).mul_(self._chain)
            logits *= transform.softcap
        if transform.temperature != 1.0:
            logits /= transform.temperature
        self._all_logprobs = logits.sub_(logits.logsumexp(-1, keepdim=True))
        self.logprobs = self._all_logprobs.gather(-1, self._ids)[:, 0]

    def entropy(self) -> Tensor:
        """[C], fp32; a probability of 0 adds 0 even where the log-prob is -inf."""
        entropy: Tensor = torch.special.entr(self._all_logprobs.exp()).sum(-1)
        return entropy

    def entropy_gradient(self, factor: Tensor | None = None) -> Tensor:
        """d entropy / d head output, [C, V], times `factor` [C]."""
        probs = self._all_logprobs.exp()
        finite = self._all_logprobs.clamp_min(torch.finfo(torch.float32).min)
        return self._scaled((finite + self.entropy()[:, None]).mul_(probs).neg_(), factor)

    def logprob_gradient(self, factor: Tensor | None = None) -> Tensor:
        """d log-prob / d head output, [C, V], times `factor` [C]. Uses up the chunk: call it last."""
        gradient = self._all_logprobs.exp_().neg_()
        gradient.scatter_add_(-1, self._ids, torch.ones_like(self.logprobs)[:, None])
        return self._scaled(gradient, factor)

    def _scaled(self, gradient: Tensor, factor: Tensor | None) -> Tensor:
        if not isinstance(self._chain, float) or self._chain != 1.0:
            gradient *= self._chain
        if factor is not None:
            gradient *= factor[:, None]
        return gradient.to(self._dtype)


def _chunks(n_rows: int, vocabulary: int) -> list[slice]:
    """Row ranges whose fp32 logits fit in `CHUNK_ELEMENTS`; they cover all rows."""
    size = max(1, CHUNK_ELEMENTS // vocabulary)
    return [slice(start, min(start + size, n_rows)) for start in range(0, n_rows, size)]
