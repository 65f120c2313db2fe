"""Attention over a packed line, one sequence at a time: the cost is that of the sequences, not of the line's square.

transformers computes packed lines with one mask over all pairs of tokens. Here each sequence meets only its own part of
that mask, so whatever the mask says (windows, chunks) still holds, and where the sequences are not told it is used whole.
"""

from __future__ import annotations

import inspect
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_core.batching.collate import ModelBatch

NAME = "sdpa_by_sequence"


def use_attention_by_sequence(hf_model: Any) -> bool:
    """Switch a model that computes with SDPA over to this; False where it uses another or cannot take it."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    takes_arguments = any(
        parameter.kind is parameter.VAR_KEYWORD
        for parameter in inspect.signature(hf_model.base_model.forward).parameters.values()
    )
    if hf_model.config._attn_implementation not in ("sdpa", NAME) or not takes_arguments:
        return False
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    hf_model.set_attn_implementation(NAME)
    return bool(hf_model.config._attn_implementation == NAME)


def sequence_lengths(batch: ModelBatch) -> list[int] | None:
    """Tokens of each sequence of a packed line, in order; None where nothing is packed."""
    if batch.attention_mask is not None or batch.n_rows < 2:
        return None
    starts = (batch.position_ids[0] == 0).nonzero()[:, 0].tolist()
    return [end - start for start, end in pairwise([*starts, batch.position_ids.shape[1]])]


def _attention(  # noqa: PLR0917
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    sequence_lengths: list[int] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """As transformers' SDPA: `query` [1, heads, S, D] to [1, S, heads, D]; `attention_mask` [1, 1, S, S]."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if sequence_lengths is None or attention_mask is None or kwargs.get("position_bias") is not None:
        whole: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return whole
    outputs = []
    for start, end in pairwise(accumulate(sequence_lengths, initial=0)):
        own = slice(start, end)
        mask = attention_mask[:, :, own, own]
        output, _ = sdpa_attention_forward(module, query[:, :, own], key[:, :, own], value[:, :, own], mask, **kwargs)
        outputs.append(output)
    return torch.cat(outputs, dim=1), None
