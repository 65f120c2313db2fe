"""What `gpu.py` runs: the shape of the model, the rows, and how many operations they take. Nothing here is timed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from rlhf_core.batching.rows import TokenRow


@dataclass(frozen=True)
class Size:
    """A Qwen3 shape and the work given to it. Lengths are in tokens."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocabulary: int
    matrix: int  # side of the matrices whose product gives the card's rate
    line: int  # tokens of a packed line
    lines: int  # lines of an SFT step
    median_row: int
    longest_row: int
    padded_rows: int  # rows of a padded batch, in the order drawn
    logprobs: int  # tokens whose log-probs are taken at once
    pairs: int  # DPO pairs of a step
    prompt: int
    response: int
    prompts: int  # GRPO prompts of a step
    samples: int  # responses to each
    repeats: int


# The 0.6B shape: 28 layers x 1,024, tied head over 151,936 tokens.
FULL = Size(
    **{"layers": 28, "hidden": 1024, "heads": 16, "kv_heads": 8, "head_dim": 128, "mlp": 3072, "vocabulary": 151_936},
    **{"matrix": 8192, "line": 8192, "lines": 4, "median_row": 256, "longest_row": 4096, "padded_rows": 8},
    **{"logprobs": 32_768, "pairs": 64, "prompt": 256, "response": 256, "prompts": 16, "samples": 8, "repeats": 5},
)
TOY = Size(
    **{"layers": 2, "hidden": 32, "heads": 2, "kv_heads": 1, "head_dim": 16, "mlp": 64, "vocabulary": 4096},
    **{"matrix": 128, "line": 128, "lines": 2, "median_row": 16, "longest_row": 96, "padded_rows": 4},
    **{"logprobs": 2048, "pairs": 4, "prompt": 8, "response": 8, "prompts": 2, "samples": 2, "repeats": 2},
)


def save_random_model(size: Size, folder: Path) -> Path:
    """A model of that shape with seeded random weights, in bf16, as a folder that the product loads."""
    config = Qwen3Config(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.mlp,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        head_dim=size.head_dim,
        max_position_embeddings=max(size.longest_row, size.prompt + size.response),
        tie_word_embeddings=True,
        eos_token_id=None,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


def sft_rows(size: Size) -> list[TokenRow]:
    """Rows of lognormal lengths (sigma 0.9 of the log) that fill `lines` lines; every token but the first is a target."""
    draw = random.Random(0)
    rows: list[TokenRow] = []
    room = size.lines * size.line
    while room > 1:
        length = int(size.median_row * draw.lognormvariate(0.0, 0.9))
        length = min(max(length, 2), size.longest_row, room)
        rows.append(random_row(size, draw, 1, length - 1))
        room -= length
    return rows


def preference_rows(size: Size) -> list[tuple[TokenRow, TokenRow]]:
    """Chosen and rejected row of each pair; the two begin with the same prompt."""
    draw = random.Random(1)
    pairs = []
    for _ in range(size.pairs):
        prompt = random_ids(size, draw, size.prompt)
        chosen, rejected = (random_ids(size, draw, draw.randint(size.response // 2, size.response)) for _ in range(2))
        pairs.append((TokenRow.from_prompt_response(prompt, chosen), TokenRow.from_prompt_response(prompt, rejected)))
    return pairs


def random_row(size: Size, draw: random.Random, prompt: int, response: int) -> TokenRow:
    """A row of so many random tokens before and within its targets."""
    return TokenRow.from_prompt_response(random_ids(size, draw, prompt), random_ids(size, draw, response))


def random_ids(size: Size, draw: random.Random, count: int) -> list[int]:
    """`count` tokens; 0, which pads, is not among them."""
    return [draw.randrange(1, size.vocabulary) for _ in range(count)]


def training_flops(size: Size, rows: Sequence[TokenRow]) -> float:
    """Operations of one forward and backward pass over `rows`: matrix products alone, nothing counted that is done twice.

    Six a weight and token (the head's included, the embedding's look-up not), and of attention what a causal mask leaves.
    """
    queries, keys = size.heads * size.head_dim, size.kv_heads * size.head_dim
    layer = size.hidden * (2 * queries + 2 * keys + 3 * size.mlp)
    weights = size.layers * layer + size.hidden * size.vocabulary
    tokens = sum(len(row) for row in rows)
    attention = 6 * size.layers * queries * sum(len(row) ** 2 for row in rows)
    return 6.0 * weights * tokens + attention
