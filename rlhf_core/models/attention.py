"""Attention over a packed line, one segment at a time: the cost is that of the sequences, not of the line's square.

transformers computes packed lines with one mask over all pairs of tokens. Here it is asked for the mask of a single sequence
as long as the longest in the line, and each sequence meets its own part of that; so whatever the mask says (windows, chunks)
still holds, also for a response whose prompt stands elsewhere in the line.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_core.batching.collate import ModelBatch, Segment

NAME, PLAIN = "sdpa_by_segment", "sdpa"


def attend_by_segment(hf_model: Any) -> None:
    """Switch a model that computes with SDPA over to this; one that uses another attention, or cannot take it, stays as it is.

    Only attention knows of segments, so a model with recurrent layers, or one that counts positions itself, cannot. Whether
    one that can does it right is to be seen (see `layouts`).
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    parameters = inspect.signature(hf_model.base_model.forward).parameters
    takes_segments = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    if (
        hf_model.config._attn_implementation != PLAIN
        or not takes_segments
        or "position_ids" not in parameters
        or hf_model._is_stateful
        or not type(hf_model).__module__.startswith("transformers.")
    ):
        return
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _mask)
    hf_model.set_attn_implementation(NAME)


def attends_by_segment(hf_model: Any) -> bool:
    """Whether the model takes `segment_arguments`."""
    return bool(hf_model.config._attn_implementation == NAME)


def attend_plainly(hf_model: Any) -> None:
    """Switch a model back from this to SDPA."""
    hf_model.set_attn_implementation(PLAIN)


def segment_arguments(batch: ModelBatch) -> dict[str, Any]:
    """What the model's forward pass takes for a packed line, its mask among them; empty where nothing is packed."""
    # A gap in the positions of a lone segment would be taken for the start of another sequence where no mask says otherwise.
    if not batch.segments or (len(batch.segments) < 2 and not batch.has_gaps):
        return {}
    longest = max(length + _prompt_length(batch.segments, prompt) for length, prompt in batch.segments)
    return {"attention_mask": batch.input_ids.new_ones(1, longest), "segments": batch.segments}


def _mask(*, q_length: int, kv_length: int, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """As transformers' mask for SDPA; for a packed line that of its longest sequence, which `kv_length` tells."""
    from transformers.masking_utils import sdpa_mask

    mask: Tensor | None
    if kv_length < q_length:
        mask = sdpa_mask(q_length=kv_length, kv_length=kv_length, attention_mask=None, **kwargs)
    else:
        mask = sdpa_mask(q_length=q_length, kv_length=kv_length, attention_mask=attention_mask, **kwargs)
    return mask


def _attention(  # noqa: PLR0917
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    segments: tuple[Segment, ...] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """As transformers' SDPA: `query` [1, heads, S, D] to [1, S, heads, D]; `attention_mask` that of the longest sequence."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if segments is None:
        whole: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return whole
    lengths = [segment.length for segment in segments]
    # Split, not sliced: the backward pass of a slice is as large as the line.
    queries, keys, values = (torch.split(tensor, lengths, dim=2) for tensor in (query, key, value))
    outputs = []
    for i, (_, prompt) in enumerate(segments):
        own_key, own_value = keys[i], values[i]
        if prompt is not None:
            own_key, own_value = torch.cat([keys[prompt], own_key], 2), torch.cat([values[prompt], own_value], 2)
        mask = _part_of_mask(attention_mask, lengths[i], own_key)
        outputs.append(sdpa_attention_forward(module, queries[i], own_key, own_value, mask, **kwargs)[0])
    return torch.cat(outputs, dim=1), None


def _part_of_mask(mask: Tensor | None, length: int, key: Tensor) -> Tensor | None:
    """For the last `length` tokens of a sequence with `key`; None where SDPA's own causal mask is right."""
    total = key.shape[2]
    if mask is not None:
        return mask[:, :, total - length : total, :total]
    if total == length:
        return None
    return torch.ones(length, total, dtype=torch.bool, device=key.device).tril_(total - length)


def _prompt_length(segments: tuple[Segment, ...], prompt: int | None) -> int:
    return 0 if prompt is None else segments[prompt].length
