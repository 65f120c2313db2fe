"""Generation with vLLM, inside the calling process.

vLLM seeds the global random state and starts torch.distributed: nothing may be trained in a process that holds this engine.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from rlhf_core.device import device_for
from rlhf_core.models.lean_import import import_transformers
from rlhf_core.precision import Dtype
from rlhf_core.rollout.base import Generation, Sampling, Tell, check_prompts

# Read by vLLM when it is imported and when the engine starts. One process: quick start, half the memory, no orphans.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}

MIN_BATCHED_TOKENS = 2048


class VllmGenerator:
    """vLLM with weights that are replaced in place; implements `rlhf_core.rollout.base.Generator`.

    On a CPU the key-value cache takes `kv_cache_mib`; on a GPU (`gpus` above 0) vLLM takes `gpu_memory_fraction` of its memory.
    """

    name = "vllm"
    notes: tuple[str, ...] = ()
    metrics: Mapping[str, float] = MappingProxyType({"generation/vllm": 1.0})

    def __init__(
        self,
        model: Path,
        *,
        dtype: Dtype,
        max_model_len: int,
        max_num_seqs: int,
        kv_cache_mib: int,
        gpu_memory_fraction: float,
        trust_remote_code: bool,
        gpus: float = 0.0,
    ) -> None:
        os.environ.update(ENVIRONMENT)
        import_transformers()
        from vllm import LLM

        on_gpu = device_for(gpus).type == "cuda"
        place: dict[str, Any] = (
            {"gpu_memory_utilization": gpu_memory_fraction}
            if on_gpu
            # A seeded prompt that is prefilled in chunks crashes on CPU, whose generators keep no offset.
            else {
                "kv_cache_memory_bytes": kv_cache_mib << 20,
                "enable_chunked_prefill": False,
                "max_num_batched_tokens": max(max_model_len, MIN_BATCHED_TOKENS),
            }
        )
        self._llm = LLM(
            str(model),
            dtype={"bf16": "bfloat16", "fp32": "float32"}[dtype],
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            # The log-probs of the tempered distribution: what was sampled from, as nothing is truncated.
            logprobs_mode="processed_logprobs",
            # The stop ids and temperature of the caller hold; a model's generation_config.json may not change them.
            generation_config="vllm",
            skip_tokenizer_init=True,
            enforce_eager=not on_gpu,
            worker_extension_cls="rlhf_core.rollout.vllm_weights.WeightUpdate",
            trust_remote_code=trust_remote_code,
            **place,
        )
        self._max_model_len = max_model_len
        self._version = 0

    @property
    def weight_version(self) -> int:
        """The version given with the latest `update_weights`; 0 for the weights of the model folder."""
        return self._version

    def update_weights(self, state: Mapping[str, Tensor], version: int) -> None:
        """Replace all weights by `state` (Hugging Face names) and forget everything computed with the old ones."""
        self._llm.collective_rpc("load_policy_weights", args=(dict(state),))
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM kept its prefix cache after a weight update: it is still generating")
        self._version = version

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int, tell: Tell | None = None
    ) -> list[list[Generation]]:
        """Answer `prompts` (token ids), `sampling.n` generations each; see `Generator.generate`."""
        from vllm import SamplingParams

        check_prompts(prompts, self._max_model_len)
        params = [
            SamplingParams(
                n=sampling.n,
                temperature=0.0 if sampling.greedy else sampling.temperature,
                max_tokens=min(sampling.max_new_tokens, self._max_model_len - len(prompt)),
                stop_token_ids=list(sampling.stop_ids),
                # Only the given stop ids end a response, whatever the model folder calls its end of sequence.
                ignore_eos=True,
                logprobs=0,
                # vLLM gives sample i of a prompt the seed plus i, so prompts are n apart.
                seed=None if sampling.greedy else seed + index * sampling.n,
                detokenize=False,
            )
            for index, prompt in enumerate(prompts)
        ]
        outputs = self._llm.generate(
            [{"prompt_token_ids": list(p)} for p in prompts],
            params,
            use_tqdm=tell is not None and partial(_Bar, tell, len(prompts) * sampling.n),
        )
        return [[self._generation(c) for c in sorted(o.outputs, key=lambda c: c.index)] for o in outputs]

    def _generation(self, completion: Any) -> Generation:
        ids = list(completion.token_ids)
        logprobs = [at[token].logprob for at, token in zip(completion.logprobs, ids, strict=True)]
        return Generation(ids, logprobs, "stop" if completion.finish_reason == "stop" else "length", self._version)


class _Bar:
    """What vLLM takes for a progress bar: nothing is drawn, and `tell` hears the share of all `count` responses."""

    def __init__(self, tell: Tell, count: int, iterable: Iterable[Any] = (), **_: Any) -> None:
        self._tell, self._count, self._iterable, self._began_s = tell, count, iterable, time.monotonic()
        self.n, self.postfix = 0, ""

    def __iter__(self) -> Iterator[Any]:
        return iter(self._iterable)

    @property
    def format_dict(self) -> dict[str, float]:
        """By the seconds in it vLLM divides."""
        return {"elapsed": max(time.monotonic() - self._began_s, 1e-9)}

    def update(self, count: int = 1) -> None:
        """So many more are done."""
        self.n += count
        self._tell(min(self.n / self._count, 1.0))

    def refresh(self) -> None:
        """Nothing is drawn."""

    def close(self) -> None:
        """Nothing is drawn."""
