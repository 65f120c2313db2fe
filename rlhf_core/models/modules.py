"""What an engine trains: a Hugging Face model, wrapped so that one forward pass gives what an objective needs.

Only positions that predict a target meet the vocabulary, and those in chunks whose logits are computed again in the
backward pass: a full fp32 [B, T, V] never exists.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rlhf_core.batching.collate import ModelBatch, scatter
from rlhf_core.objectives.logprobs import token_logprobs

CHUNK_TOKENS = 256


class PolicyModule(nn.Module):
    """A causal language model that gives log-probs of a batch's targets. `hf` is the model; adapters may live in it."""

    def __init__(self, hf: Any, chunk_tokens: int = CHUNK_TOKENS) -> None:
        super().__init__()
        self.hf = hf
        self.chunk_tokens = chunk_tokens

    def forward(self, batch: ModelBatch, temperature: float = 1.0, with_entropy: bool = False) -> tuple[Tensor, Tensor | None]:
        """Log-probs and (if asked for) entropies, each [n_rows, T] fp32 in nats, of softmax(logits / temperature)."""
        hidden_NH = hidden_states(self.hf, batch)[batch.target_index]
        logprobs, entropies = [], []
        # At least one chunk, even without targets: the head takes part in every rank's collectives.
        for hidden, labels in zip(hidden_NH.split(self.chunk_tokens), batch.target_ids.split(self.chunk_tokens), strict=True):
            logprob, entropy = self._chunk(hidden, labels, temperature)
            logprobs.append(logprob)
            entropies.append(entropy)
        entropy_BT = scatter(batch, torch.cat(entropies)) if with_entropy else None
        return scatter(batch, torch.cat(logprobs)), entropy_BT

    def _chunk(self, hidden: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        if not torch.is_grad_enabled():
            return self._logprobs(hidden, labels, temperature)
        result: tuple[Tensor, Tensor] = checkpoint(self._logprobs, hidden, labels, temperature, use_reentrant=False)
        return result

    def _logprobs(self, hidden: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        logits = finished_logits(self.hf.get_output_embeddings()(hidden), self.hf.config)
        return token_logprobs(logits, labels, temperature)


class ScoreModule(nn.Module):
    """A backbone with a scalar head named `score`: a number a sequence (reward), or one a target (value)."""

    def __init__(self, hf: Any) -> None:
        super().__init__()
        self.hf = hf

    def forward(self, batch: ModelBatch, per_token: bool = False) -> Tensor:
        """Scores [n_rows] at each sequence's last token, or with `per_token` values [n_rows, T], fp32.

        A value belongs to the state before its target: it is read where the target is predicted.
        """
        index = batch.target_index if per_token else batch.last_index
        scores = self.hf.score(hidden_states(self.hf, batch)[index]).squeeze(-1).float()
        return scatter(batch, scores) if per_token else scores


def hidden_states(hf: Any, batch: ModelBatch) -> Tensor:
    """Last hidden states [B' * S, H] of the backbone of `hf`.

    Packed rows stay apart only with position ids, without an attention mask and without the cache.
    """
    output = hf.base_model(
        input_ids=batch.input_ids, position_ids=batch.position_ids, attention_mask=batch.attention_mask, use_cache=False
    )
    hidden: Tensor = output.last_hidden_state
    return hidden.flatten(0, 1)


def finished_logits(logits: Tensor, config: Any) -> Tensor:
    """What some architectures do to logits behind the head: scale (Cohere, Granite) and soft cap (Gemma)."""
    if scale := getattr(config, "logit_scale", None):
        logits = logits * scale
    if divisor := getattr(config, "logits_scaling", None):
        logits = logits / divisor
    if cap := getattr(config, "final_logit_softcapping", None):
        logits = cap * torch.tanh(logits / cap)
    return logits
