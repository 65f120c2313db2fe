"""Tiny random models with real tokenizers, in Hugging Face layout, for every test that needs a model.

Four architectures, each with a trap of its own: llama (pad = eos, ChatML), qwen3 (own pad token, ChatML, untied by default),
gpt2 (no chat template, 256 learned positions), gemma (mandatory BOS, sliding window, scaled embeddings).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

Architecture = Literal["llama", "qwen3", "gpt2", "gemma"]
ARCHITECTURES: tuple[Architecture, ...] = ("llama", "qwen3", "gpt2", "gemma")
POSITIONS = {"llama": 2048, "qwen3": 2048, "gpt2": 256, "gemma": 2048}

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GEMMA_TURNS = (
    "{{ bos_token }}{% for message in messages %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
CORPUS = [
    "A customer asks for a refund of an order that arrived late. Check the receipt, then approve or reject the request.",
    "If the account is suspended, escalate to a manager; otherwise answer the question and close the ticket.",
    "First read the policy. Then apply the rules in order. The default action is to reject the claim.",
    "user assistant system model: what is the answer? The answer is yes. The answer is no. I do not know.",
    "step 1: ask for the category. step 2: if it is gold, approve. step 3: else, go to step 1. 0 1 2 3 4 5 6 7 8 9",
    "the and of to in is that it for was on are with as his they be at one have this from or had by hot but some what there we",
]
SPECIAL_TOKENS: dict[str, list[str]] = {
    "llama": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "qwen3": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "gpt2": ["<|endoftext|>"],
    "gemma": ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"],
}
NAMED_TOKENS: dict[str, dict[str, str]] = {
    "llama": {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"},
    "qwen3": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    "gpt2": {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
    "gemma": {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"},
}
TEMPLATES: dict[str, str | None] = {"llama": CHATML, "qwen3": CHATML, "gpt2": None, "gemma": GEMMA_TURNS}


def tiny_tokenizer(arch: Architecture) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most 512 tokens: any text round-trips. Gemma's adds BOS to whatever it encodes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=SPECIAL_TOKENS[arch],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if arch == "gemma":
        bos = ("<bos>", tokenizer.token_to_id("<bos>"))
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[bos]
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=POSITIONS[arch], clean_up_tokenization_spaces=False, **NAMED_TOKENS[arch]
    )
    fast.chat_template = TEMPLATES[arch]
    return fast


def tiny_config(arch: Architecture, tokenizer: PreTrainedTokenizerFast, tied: bool) -> PreTrainedConfig:
    """Two layers of width 32. The weights are drawn wide (0.15), so that log-probs differ clearly between tokens."""
    shared = {
        "vocab_size": len(tokenizer),
        "tie_word_embeddings": tied,
        "initializer_range": 0.15,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if arch == "gpt2":
        no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        return GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=POSITIONS[arch], **no_dropout, **shared)
    llama_like = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": POSITIONS[arch],
    }
    if arch == "llama":
        return LlamaConfig(**llama_like, **shared)
    if arch == "qwen3":
        return Qwen3Config(head_dim=8, **llama_like, **shared)
    windows = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 64, "query_pre_attn_scalar": 8}
    return Gemma3TextConfig(head_dim=8, **windows, **llama_like, **shared)


def tiny_model(tmp: Path, arch: Architecture = "llama", *, tied: bool | None = None, seed: int = 0) -> Path:
    """Write the model into `tmp/<arch>-...` and return that folder; the same arguments give the same weights.

    `tied` None takes what the real family does: qwen3 untied here, the others tied.
    """
    tied = arch != "qwen3" if tied is None else tied
    folder = tmp / f"{arch}-{'tied' if tied else 'untied'}-{seed}"
    tokenizer = tiny_tokenizer(arch)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(tiny_config(arch, tokenizer, tied), dtype=torch.float32)
    stops = [tokenizer.eos_token_id]
    if arch == "gemma":
        stops.append(tokenizer.convert_tokens_to_ids("<end_of_turn>"))
    model.generation_config.eos_token_id = stops if len(stops) > 1 else stops[0]
    model.generation_config.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stops[0]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def alibi_model(tmp: Path) -> Path:
    """A model that packing mixes up: ALiBi counts positions along the line. With the tokenizer of llama."""
    folder, tokenizer = tmp / "alibi", tiny_tokenizer("llama")
    named = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.15}
    config = FalconConfig(vocab_size=len(tokenizer), alibi=True, new_decoder_architecture=False, **shape, **named)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
