"""A tiny model that ends its turns: a random one almost never draws the one token in hundreds that does."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_core.batching.templates import Renderer
from tests.tiny_models import tiny_model

_SHARED = 2.0  # what all hidden states get in common, so that a row of the head can be about any of them


def talkative_model(folder: Path, share: float = 0.2) -> Path:
    """A model that draws the end of its turn with a probability of about `share` at each token."""
    path = tiny_model(folder, "llama", tied=False)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(path)
    [end, *_] = Renderer(tokenizer).stop_ids
    ids = torch.randint(5, len(tokenizer), (8, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        direction = torch.ones(model.config.hidden_size) / model.config.hidden_size**0.5
        model.model.embed_tokens.weight += _SHARED * direction
        hidden = model.model(ids).last_hidden_state.reshape(-1, model.config.hidden_size)
        wanted = (hidden @ model.lm_head.weight.T).logsumexp(-1).mean() + torch.tensor(share / (1 - share)).log()
        model.lm_head.weight[end] = direction * wanted / (hidden @ direction).mean()
    model.save_pretrained(path)
    return path
