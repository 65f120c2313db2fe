"""A tiny random model of each architecture, in Hugging Face layout, with the tokenizer of the tiny llama.

Widths are small; what tells architectures apart is all there: experts, convolutions, states, windows, ALiBi, caps, buffers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.tiny_models import tiny_tokenizer

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
ROUTED_EXPERTS = {
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 32,
    "n_group": 2,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "topk_group": 1,
}
LATENT = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
MAMBA = {"mamba_chunk_size": 16, "mamba_d_state": 16, "mamba_n_heads": 4}
WINDOWS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "qwen3_moe": EXPERTS | {"head_dim": 8},
    "qwen3_next": EXPERTS
    | {"head_dim": 8, "shared_expert_intermediate_size": 32, "layer_types": ["linear_attention", "full_attention"]}
    | {"linear_key_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_value_head_dim": 8},
    "mistral": {"sliding_window": 16},
    "mixtral": {"num_local_experts": 4, "router_jitter_noise": 0.1},
    "gemma2": {"final_logit_softcapping": 3.0, "head_dim": 8, "query_pre_attn_scalar": 8} | WINDOWS,
    "gemma3_text": {"head_dim": 8, "query_pre_attn_scalar": 8} | WINDOWS,
    "phi3": {"original_max_position_embeddings": 256},
    "phi": {"partial_rotary_factor": 0.5, "resid_pdrop": 0.1},
    "olmo2": {},
    "gpt2": {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 256},
    "gpt_neox": {"rotary_pct": 0.5},
    "smollm3": {"no_rope_layers": [1, 0]},
    "granite": {"logits_scaling": 2.0},
    "cohere": {"logit_scale": 0.5},
    "opt": {"dropout": 0.1, "ffn_dim": 64, "init_std": 0.15, "word_embed_proj_dim": 32},
    "falcon": {"alibi": True, "multi_query": True, "new_decoder_architecture": False},
    "falcon_h1": MAMBA | {"lm_head_multiplier": 0.5, "mamba_d_head": 8, "mamba_d_ssm": 32},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "bamba": MAMBA | {"attn_layer_indices": [1], "mamba_d_head": 16, "mamba_n_groups": 1},
    "recurrent_gemma": {
        "attention_window_size": 16,
        "head_dim": 8,
        "logits_soft_cap": 1.0,
        "lru_width": 32,
        "num_hidden_layers": 3,
        "w_init_variance_scale": 1.0,
    },
    "deepseek_v3": ROUTED_EXPERTS | LATENT | {"num_key_value_heads": 4},
    "glm4_moe": ROUTED_EXPERTS | {"head_dim": 8},
    "gpt_oss": {"head_dim": 8, "num_local_experts": 4} | WINDOWS,
}


def architecture(tmp: Path, name: str, **settings: Any) -> Path:
    """Write the model of that type into a folder of its own in `tmp` and return the folder; the same every time.

    What a model counts while it was trained, as the experts' load of DeepSeek V3, is drawn too.
    """
    tokenizer = tiny_tokenizer("llama")
    named = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    config = AutoConfig.for_model(name, **SHAPE | named | {"vocab_size": len(tokenizer)} | ARCHITECTURES[name] | settings)
    folder = tmp / "-".join([name, *(f"{key}={value}" for key, value in settings.items())])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for buffer_name, buffer in model.named_buffers():
            if buffer_name in model.state_dict():
                buffer.normal_(std=0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
