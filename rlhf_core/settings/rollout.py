"""Settings of sampling."""

from __future__ import annotations

from enum import Enum

from pydantic import Field

from data_processing.settings import Settings, operational


class RolloutEngine(str, Enum):
    """Who generates."""

    auto = "auto"
    vllm = "vllm"
    hf = "hf"


class RolloutSettings(Settings):
    """How responses are sampled during online training."""

    engine: RolloutEngine = Field(RolloutEngine.auto, description="auto: vLLM where it imports, else transformers")
    temperature: float = Field(1.0, gt=0.0, description="Sampling temperature; the trainer's log-probs use the same")
    max_new_tokens: int = Field(256, ge=1, description="Longest response, in tokens")
    kv_cache_mib: int = operational(256, "vLLM's key-value cache on CPU, in MiB", ge=16)
    gpu_memory_fraction: float = operational(0.4, "Share of a GPU vLLM may take", gt=0.0, lt=1.0)
    max_logprob_gap: float = Field(
        0.2, gt=0.0, description="Largest mean |sampler - trainer| log-prob (nats) before the run stops"
    )
    threads: int = operational(1, "OpenMP threads of the generation process", ge=1)
    start_timeout_s: float = operational(300.0, "Seconds the generation engine may take to start", gt=0)


class RolloutCorrection(str, Enum):
    """What makes up for responses that other weights (or another kernel) drew than those that are trained."""

    auto = "auto"
    none = "none"
    truncate = "truncate"
    mask = "mask"
    sequence_mask = "sequence_mask"
