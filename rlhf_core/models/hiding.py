"""Whether tokens can be hidden from a model by leaving them out, the others keeping their positions: seen, not assumed.

Attention to a token weighs it by what it is and where it stands. So tokens that are not attended to are as good as not there, as long as
the others stand where they stood. States, convolutions and distances that a model counts itself know better.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import device

from rlhf_core.batching.collate import ModelBatch, collate
from rlhf_core.batching.rows import TokenRow
from rlhf_core.models.modules import ScoreModule, hidden_states
from rlhf_core.models.passes import passes

_PROMPT_TOKENS, _RESPONSE_TOKENS, _HIDDEN = 6, 18, (9, 14)
# How far apart equal readings may be by rounding (their last hidden states, relative to their length): sound models differ by up to 4e-7 in
# fp32 and 0.004 in bf16. Closing up moves them by more than twice that, or it is not seen whether positions count.
_ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 0.02}


@torch.inference_mode()
def can_hide(module: ScoreModule, on: device) -> bool:
    """Whether a random row without some tokens is read as the whole row is with attention 0 on them, and not as one closed up."""
    vocabulary = module.hf.config.get_text_config().vocab_size
    ids = torch.randint(vocabulary, (_PROMPT_TOKENS + _RESPONSE_TOKENS,), generator=torch.Generator().manual_seed(0)).tolist()
    row = TokenRow.from_prompt_response(ids[:_PROMPT_TOKENS], ids[_PROMPT_TOKENS:])
    whole = collate([row], pad_id=0, packed=False)
    assert whole.attention_mask is not None, "rows are padded"
    mask = whole.attention_mask.clone()
    mask[:, slice(*_HIDDEN)] = 0
    gap = row.hiding(*_HIDDEN)
    [(_, without)] = passes([gap], module.layouts, len(row), on)
    [(_, closed)] = passes([replace(gap, positions=None)], module.layouts, len(row), on)
    batches = (replace(whole, attention_mask=mask), without, closed)
    masked, left_out, closed_up = (_last(module, batch.to(on)) for batch in batches)
    apart = (masked - left_out).norm()
    return bool(apart <= _ROUNDING[module.hf.dtype] * masked.norm() and 2 * apart < (closed_up - left_out).norm())


def _last(module: ScoreModule, batch: ModelBatch) -> torch.Tensor:
    return hidden_states(module.hf, batch)[batch.last_index].float()
