"""Noise on the input embeddings in training (NEFTune, arXiv 2310.05914), the same however a batch is cut and laid out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_core.batching.collate import ModelBatch


@dataclass(frozen=True, slots=True)
class EmbeddingNoise:
    """Uniform noise in +-alpha / sqrt(L d) on a row of L tokens with embeddings of d numbers.

    Every row has a seed of its own, so its noise depends neither on the rows beside it nor on the rank.
    """

    alpha: float
    seeds: Sequence[int]
    lengths: Sequence[int]

    @contextmanager
    def on(self, hf: Any, batch: ModelBatch) -> Iterator[None]:
        """Inside, the model's embeddings of `batch` have noise; its rows share no prompts."""

        def added(module: nn.Module, inputs: Any, embeddings: Tensor) -> Tensor:
            return embeddings + self._drawn(batch, embeddings)

        hook = hf.get_input_embeddings().register_forward_hook(added)
        try:
            yield
        finally:
            hook.remove()

    def _drawn(self, batch: ModelBatch, embeddings: Tensor) -> Tensor:
        """The noise of embeddings [B', S, d], in their precision; 0 on padding."""
        noise = torch.zeros_like(embeddings).flatten(0, 1)
        generator, width = torch.Generator(embeddings.device), embeddings.shape[-1]
        for last, length, seed in zip(batch.last_index.tolist(), self.lengths, self.seeds, strict=True):
            generator.manual_seed(seed)
            drawn = torch.rand(length, width, generator=generator, device=embeddings.device)
            noise[last - length + 1 : last + 1] = (2 * drawn - 1) * (self.alpha / math.sqrt(length * width))
        return noise.view_as(embeddings)
