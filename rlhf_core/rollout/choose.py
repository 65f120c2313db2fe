"""Which generation engine runs, and why."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from data_processing.errors import ConfigError
from rlhf_core.precision import Dtype
from rlhf_core.rollout.base import Generator
from rlhf_core.settings.rollout import RolloutEngine

# How configs call the number of experts in a layer.
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


def choose_engine(engine: RolloutEngine, model: Path, gpus: float = 0.0) -> tuple[RolloutEngine, str]:
    """The engine that `engine` means for the model folder, and the reason in words. Imports vLLM unless `hf` is asked for.

    `gpus` are those reserved for it; 0 generates on the CPU.

    Raises `ConfigError` where `vllm` is asked for and cannot serve the model.
    """
    if engine is RolloutEngine.hf:
        return RolloutEngine.hf, "asked for"
    obstacle = _vllm_obstacle(model, gpus)
    if obstacle is None:
        return RolloutEngine.vllm, "asked for" if engine is RolloutEngine.vllm else "vLLM imports and knows the architecture"
    if engine is RolloutEngine.vllm:
        raise ConfigError(f"rollout engine 'vllm' cannot be used: {obstacle}; use engine 'hf' or 'auto'")
    return RolloutEngine.hf, obstacle


def fallback_note(asked: RolloutEngine, chosen: RolloutEngine, reason: str) -> tuple[str, ...]:
    """A line for people where vLLM was not to be had."""
    if asked is not RolloutEngine.auto or chosen is RolloutEngine.vllm:
        return ()
    return (f"generating with transformers, which is slower than vLLM: {reason}",)


def make_generator(
    engine: RolloutEngine,
    model: Path,
    *,
    dtype: Dtype,
    max_model_len: int,
    max_num_seqs: int,
    kv_cache_mib: int,
    gpu_memory_fraction: float,
    threads: int,
    trust_remote_code: bool,
    gpus: float = 0.0,
) -> Generator:
    """Start an engine on the model folder. `max_model_len` bounds prompt plus response (tokens), `max_num_seqs` what runs at once."""
    torch.set_num_threads(threads)
    chosen, _ = choose_engine(engine, model, gpus)
    if chosen is RolloutEngine.hf:
        from rlhf_core.rollout.hf_engine import HfGenerator

        return HfGenerator(
            model,
            dtype=dtype,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            trust_remote_code=trust_remote_code,
            gpus=gpus,
        )
    from rlhf_core.rollout.vllm_engine import VllmGenerator

    return VllmGenerator(
        model,
        dtype=dtype,
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        kv_cache_mib=kv_cache_mib,
        gpu_memory_fraction=gpu_memory_fraction,
        trust_remote_code=trust_remote_code,
        gpus=gpus,
    )


def _vllm_obstacle(model: Path, gpus: float) -> str | None:
    """Why vLLM cannot serve the model folder on the GPUs reserved, or on the CPU, or None."""
    from rlhf_core.rollout.vllm_engine import ENVIRONMENT

    os.environ.update(ENVIRONMENT)
    try:
        # `import vllm` passes beside a broken torchvision; this import does not.
        from vllm import LLM, ModelRegistry
        from vllm.platforms import current_platform
    except (ImportError, RuntimeError, OSError) as error:
        return f"vLLM does not import here ({type(error).__name__}: {error})"
    del LLM
    config: dict[str, Any] = json.loads((model / "config.json").read_text())
    architectures: list[str] = config.get("architectures") or []
    if not set(architectures) & set(ModelRegistry.get_supported_archs()):
        return f"vLLM does not know the architecture {architectures}"
    if current_platform.is_cpu() != (gpus == 0):
        return f"this vLLM is built for {current_platform.device_type}, and {gpus:g} GPUs are reserved"
    return None if gpus else _cpu_kernel_obstacle(config)


def _cpu_kernel_obstacle(config: dict[str, Any]) -> str | None:
    """vLLM's attention on CPU has no kernel for small heads, and finds out only while generating; experts it does not renew."""
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    if any((config.get(name) or 0) > 1 for name in EXPERTS):
        return "vLLM on CPU keeps the experts that it started with when it is given new weights"

    width, heads = config.get("hidden_size", config.get("n_embd")), config.get("num_attention_heads", config.get("n_head"))
    head_size = config.get("head_dim") or (width // heads if width and heads else None)
    sizes: list[int] = CPUAttentionBackend.get_supported_head_sizes()
    if head_size is None or head_size in sizes:
        return None
    return f"vLLM on CPU has no attention kernel for head size {head_size}, only for {sizes}"
