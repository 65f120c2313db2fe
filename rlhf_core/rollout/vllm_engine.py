"""Generation with vLLM, inside the calling process.

vLLM seeds the global random state and starts torch.distributed: nothing may be trained in a process that holds this engine.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
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
    in_batches = False
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
        # What is being drawn, and under which name the engine knows it.
        self._open: dict[int, str] = {}

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

    def stream(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int, tell: Tell | None = None
    ) -> Iterator[tuple[int, Generation]]:
        """Answer `prompts` (token ids), `sampling.n` generations each; see `Generator.stream`."""
        total = len(prompts) * sampling.n
        check_prompts(prompts, self._max_model_len)
        try:
            for number in range(total):
                self.begin(number, prompts[number // sampling.n], sampling, seed + number)
            while self._open:
                yield from self.ended()
                if tell is not None:
                    tell(1 - len(self._open) / total)
        finally:
            # Nothing is left to the next call where this one was given up.
            self._llm.llm_engine.abort_request(list(self._open.values()), internal=True)
            self._open.clear()

    def begin(self, number: int, prompt: Sequence[int], sampling: Sampling, seed: int) -> None:
        """Begin one answer; see `Generator.begin`."""
        from vllm.inputs import tokens_input

        check_prompts([prompt], self._max_model_len)
        params = self._params(sampling, len(prompt), seed)
        self._open[number] = self._llm.llm_engine.add_request(str(number), tokens_input(list(prompt)), params)

    def ended(self) -> list[tuple[int, Generation]]:
        """One step of the engine; see `Generator.ended`."""
        done = [output for output in self._llm.llm_engine.step() if output.finished] if self._open else []
        for output in done:
            del self._open[int(output.request_id)]
        return [(int(output.request_id), self._generation(output.outputs[0])) for output in done]

    def _params(self, sampling: Sampling, prompt_tokens: int, seed: int) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            temperature=0.0 if sampling.greedy else sampling.temperature,
            max_tokens=min(sampling.max_new_tokens, self._max_model_len - prompt_tokens),
            stop_token_ids=list(sampling.stop_ids),
            # Only the given stop ids end a response, whatever the model folder calls its end of sequence.
            ignore_eos=True,
            logprobs=0,
            seed=None if sampling.greedy else seed,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _generation(self, completion: Any) -> Generation:
        ids = list(completion.token_ids)
        logprobs = [at[token].logprob for at, token in zip(completion.logprobs, ids, strict=True)]
        return Generation(ids, logprobs, "stop" if completion.finish_reason == "stop" else "length", self._version)
