"""The output layer over a few rows at a time: their distributions, and the gradients that flow back through them.

The vocabulary is walked block by block, so that logits are exponentiated and multiplied while they are in cache. Sums over
words are taken in fp32 or better.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

# fp32 on a CPU: rows that share one pass over the weight, and words of a block (2 MiB of logits).
ROWS, WORDS = 256, 2048
# Elsewhere a block is the whole vocabulary: a GPU has no use for small ones, and in bf16 every block's part of a sum would
# be rounded. So many logits at a time: 64 MiB of them in fp32, 1 GiB on a GPU.
CPU_ELEMENTS, GPU_ELEMENTS = 1 << 24, 1 << 28


@dataclass(frozen=True, slots=True)
class LogitTransform:
    """From the head's output to logits: multiply by `scale`, cap softly at +-`softcap`, divide by `temperature`."""

    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0


@dataclass(frozen=True, slots=True)
class Chunk:
    """The distributions of C rows over V words in K blocks. Exponentials are those of logits less their block's shift."""

    hidden: Tensor  # [C, H]
    ids: Tensor  # [C] the rows' own words
    logprobs: Tensor  # [C] of those words
    entropies: Tensor  # [C], 0 where they were not asked for
    log_normalisers: Tensor  # [C]
    shifts: Tensor  # [K, C]
    exponentials: list[Tensor]  # K of [C, words], or none where they were not kept


@dataclass(frozen=True, slots=True)
class Gradients:
    """Where gradients go: `hidden` [C, H] is written, `weight` [V, H] and `bias` [V] are added to; None where not wanted."""

    hidden: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None

    def of(self, rows: slice) -> Gradients:
        """The same with the hidden states of some rows."""
        return Gradients(self.hidden[rows], self.weight, self.bias)

    def times(self, factor: float) -> Gradients:
        """All of them multiplied in place."""
        for tensor in (self.hidden, self.weight, self.bias):
            if tensor is not None and factor != 1.0:
                tensor.mul_(factor)
        return self

    def to(self, dtype: torch.dtype) -> Gradients:
        """All of them in this precision."""
        weight, bias = (None if tensor is None else tensor.to(dtype) for tensor in (self.weight, self.bias))
        return Gradients(self.hidden.to(dtype), weight, bias)


@dataclass(frozen=True)
class Head:
    """`weight` [V, H] and `bias` [V] or None, and what the architecture and the temperature make of their output."""

    weight: Tensor
    bias: Tensor | None
    transform: LogitTransform

    @property
    def dtype(self) -> torch.dtype:
        """Precision of logits and sums: fp32, or fp64 for a head in fp64."""
        return torch.promote_types(self.weight.dtype, torch.float32)

    @cached_property
    def blocks(self) -> list[slice]:
        """Ranges of words; they cover the vocabulary."""
        vocabulary = len(self.weight)
        size = WORDS if self._in_cache else vocabulary
        return [slice(start, min(start + size, vocabulary)) for start in range(0, vocabulary, size)]

    def chunks(self, n_rows: int) -> list[slice]:
        """Ranges of rows to be taken at a time; they cover all rows."""
        elements = GPU_ELEMENTS if self.weight.is_cuda else CPU_ELEMENTS
        size = ROWS if self._in_cache else max(1, elements // len(self.weight))
        return [slice(start, min(start + size, n_rows)) for start in range(0, n_rows, size)]

    def room(self, n_rows: int) -> list[Tensor]:
        """Memory for the exponentials of up to `n_rows` rows, a tensor a block."""
        return [self.weight.new_empty(n_rows, words.stop - words.start, dtype=self.dtype) for words in self.blocks]

    def scratch(self, n_rows: int) -> Tensor:
        """Memory for a block of up to `n_rows` rows."""
        return self.weight.new_empty(n_rows, self.blocks[0].stop, dtype=self.dtype)

    def read(self, hidden: Tensor, ids: Tensor, scratch: Tensor, room: list[Tensor], with_entropy: bool) -> Chunk:
        """The distributions at `hidden` [C, H] and the log-probs of `ids` [C]; exponentials stay in `room` if there is any."""
        lowest = torch.finfo(self.dtype).min
        shifts = hidden.new_empty(len(self.blocks), len(ids), dtype=self.dtype)
        sums, spreads = torch.empty_like(shifts), torch.zeros_like(shifts)
        own_logits = shifts.new_empty(len(ids))
        kept = [block[: len(ids)] for block in room]
        for k, words in enumerate(self.blocks):
            logits = self._logits(hidden, words, scratch[: len(ids), : words.stop - words.start])
            rows, columns = self._own(ids, words)
            own_logits[rows] = logits[rows, columns]
            # Words that are ruled out (minus infinity), even a whole block of them, count 0.
            shifts[k] = logits.amax(-1).clamp_(min=lowest)
            logits.sub_(shifts[k][:, None])
            exponentials = torch.exp(logits, out=kept[k] if kept else None) if with_entropy or kept else logits.exp_()
            sums[k] = exponentials.sum(-1)
            if with_entropy:
                spreads[k] = -logits.clamp_(min=lowest).mul_(exponentials).sum(-1)
        log_normalisers = (shifts + sums.log()).logsumexp(0)
        entropies = torch.zeros_like(own_logits)
        if with_entropy:
            # Each block's sum of -p log p has no difference of large numbers in it.
            surprises = spreads + sums * (log_normalisers - shifts)
            entropies = (surprises * (shifts - log_normalisers).exp()).sum(0)
        return Chunk(hidden, ids, own_logits - log_normalisers, entropies, log_normalisers, shifts, kept)

    def add_gradients(self, chunk: Chunk, grad: Tensor, entropy_grad: Tensor | None, scratch: Tensor, into: Gradients) -> None:
        """Add the gradients of sum(grad * log-probs + entropy_grad * entropies), both [C]. Uses up the exponentials."""
        for k, words in enumerate(self.blocks):
            self._add(self._logit_gradient(chunk, k, grad, entropy_grad, scratch), words, chunk.hidden, into)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits at `hidden` [C, H] of all words, [C, V]."""
        return self._logits(
            hidden, slice(0, len(self.weight)), self.weight.new_empty(len(hidden), len(self.weight), dtype=self.dtype)
        )

    def pull_back(self, hidden: Tensor, logits: Tensor, gradient: Tensor, into: Gradients) -> None:
        """Add the gradients of a loss that has `gradient` at the `logits` of `hidden`, both [C, V]. Uses both up."""
        slope = self._slope_at(logits)
        if slope is not None:
            gradient *= slope
        self._add(gradient.to(self.weight.dtype), slice(0, len(self.weight)), hidden, into)

    def new_gradients(self, hidden: Tensor) -> Gradients:
        """Room for those of a head that is trained, zero where they are added to.

        Chunks are added up in fp32, so that how many there are leaves no trace in a bf16 gradient.
        """
        bias = None if self.bias is None else torch.zeros_like(self.bias, dtype=self.dtype)
        return Gradients(torch.empty_like(hidden), torch.zeros_like(self.weight, dtype=self.dtype), bias)

    def _add(self, gradient: Tensor, words: slice, hidden: Tensor, into: Gradients) -> None:
        """Add what a gradient at the head's output for some words [C, words] makes of hidden states, weight and bias."""
        into.hidden.addmm_(gradient, self.weight[words], beta=float(words.start > 0))
        if into.weight is not None and into.weight.dtype == gradient.dtype:
            into.weight[words].addmm_(gradient.T, hidden)
        elif into.weight is not None:
            into.weight[words] += gradient.T @ hidden
        if into.bias is not None:
            into.bias[words] += gradient.sum(0, dtype=self.dtype)

    def _logit_gradient(self, chunk: Chunk, k: int, grad: Tensor, entropy_grad: Tensor | None, scratch: Tensor) -> Tensor:
        """The same gradient at the head's output for the words of block `k`, [C, words], in the head's precision."""
        exponentials, shift = self._exponentials(chunk, k, scratch)
        slope = self._slope(exponentials, shift)
        factor = (shift - chunk.log_normalisers).exp_()
        if entropy_grad is None:
            gradient = exponentials.mul_((factor * -grad)[:, None])
        else:
            probs = exponentials.mul_(factor[:, None])
            log_terms = torch.special.xlogy(probs, probs).mul_(entropy_grad[:, None])
            gradient = probs.mul_((grad + entropy_grad * chunk.entropies)[:, None]).add_(log_terms).neg_()
        rows, columns = self._own(chunk.ids, self.blocks[k])
        gradient[rows, columns] += grad[rows]
        if slope is not None:
            gradient *= slope
        return gradient.to(self.weight.dtype)

    def _exponentials(self, chunk: Chunk, k: int, scratch: Tensor) -> tuple[Tensor, Tensor]:
        """Of block `k`, [C, words], and their shift [C]; computed again where they were not kept."""
        if chunk.exponentials:
            return chunk.exponentials[k], chunk.shifts[k]
        words, shift = self.blocks[k], chunk.log_normalisers
        logits = self._logits(chunk.hidden, words, scratch[: len(shift), : words.stop - words.start])
        return logits.sub_(shift[:, None]).exp_(), shift

    @property
    def _in_cache(self) -> bool:
        return self.weight.device.type == "cpu" and self.dtype == self.weight.dtype

    def _logits(self, hidden: Tensor, words: slice, out: Tensor) -> Tensor:
        """Logits of some words, in `out` [C, words]."""
        bias, transform = None if self.bias is None else self.bias[words], self.transform
        if self.dtype != self.weight.dtype:
            out.copy_(functional.linear(hidden, self.weight[words], bias))
        elif bias is None:
            torch.mm(hidden, self.weight[words].T, out=out)
        else:
            torch.addmm(bias, hidden, self.weight[words].T, out=out)
        if transform.scale != 1.0:
            out *= transform.scale
        if transform.softcap is not None:
            out.div_(transform.softcap).tanh_().mul_(transform.softcap)
        if transform.temperature != 1.0:
            out /= transform.temperature
        return out

    def _slope(self, exponentials: Tensor, shift: Tensor) -> Tensor | float | None:
        """d logit / d head output: a number (None for 1), or [C, words] where a soft cap makes it differ."""
        if self.transform.softcap is None:
            return self._slope_at(exponentials)
        # An exponential that is 0 has gradient 0, so any finite slope will do there.
        return self._slope_at(exponentials.clamp(min=torch.finfo(self.dtype).tiny).log_().add_(shift[:, None]))

    def _slope_at(self, logits: Tensor) -> Tensor | float | None:
        """The same from logits, which a soft cap uses up."""
        constant = self.transform.scale / self.transform.temperature
        if self.transform.softcap is None:
            return None if constant == 1.0 else constant
        return logits.mul_(self.transform.temperature / self.transform.softcap).square_().neg_().add_(1.0).mul_(constant)

    def _own(self, ids: Tensor, words: slice) -> tuple[Tensor, Tensor]:
        """(rows, columns in the block) of the rows' own words that lie in it."""
        if len(self.blocks) == 1:
            return torch.arange(len(ids), device=ids.device), ids
        rows = ((ids >= words.start) & (ids < words.stop)).nonzero()[:, 0]
        return rows, ids[rows] - words.start
