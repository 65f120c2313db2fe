"""A model that is talked to: one answer at a time, handed out as it is drawn. Training and evaluation sample by `Generator` instead."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import TYPE_CHECKING, Any, Protocol

from data_processing.errors import ConfigError
from rlhf_core.config import RolloutEngine
from rlhf_core.device import device_for
from rlhf_core.precision import Dtype

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_KV_CACHE_MIB = 512


class Talker(Protocol):
    """Answers token ids with text, piece by piece."""

    window_tokens: int

    def answer(self, prompt: Sequence[int], *, temperature: float, max_new_tokens: int) -> Iterator[str]:
        """The pieces of one answer; temperature 0 always takes the likeliest token."""
        ...


def make_talker(
    engine: RolloutEngine,
    model: Path,
    tokenizer: PreTrainedTokenizerBase,
    stop_ids: Sequence[int],
    *,
    dtype: Dtype,
    max_length_tokens: int,
    gpus: float,
) -> Talker:
    """A talker with the model folder; transformers unless vLLM is asked for, as it is ready sooner. Conversations are at most
    `max_length_tokens` long, and no longer than the model's positions. Raises `ConfigError` where vLLM cannot serve the model.
    """
    from transformers import AutoConfig

    positions = getattr(AutoConfig.from_pretrained(model, trust_remote_code=True), "max_position_embeddings", None)
    window = min(max_length_tokens, positions or max_length_tokens)
    if engine is not RolloutEngine.vllm:
        return _HfTalker(model, tokenizer, stop_ids, dtype=dtype, window_tokens=window, gpus=gpus)
    from rlhf_core.rollout.choose import choose_engine

    choose_engine(engine, model, gpus)
    return _VllmTalker(model, stop_ids, dtype=dtype, window_tokens=window, gpus=gpus)


def room(window_tokens: int, prompt: Sequence[int], max_new_tokens: int) -> int:
    """Tokens that an answer may have; raises `ConfigError` where the prompt leaves room for none."""
    left = window_tokens - len(prompt)
    if left < 1:
        raise ConfigError(
            f"the conversation has {len(prompt)} tokens of {window_tokens}; begin a new one, or raise --max-length-tokens"
        )
    return min(left, max_new_tokens)


class _HfTalker:
    def __init__(
        self,
        model: Path,
        tokenizer: PreTrainedTokenizerBase,
        stop_ids: Sequence[int],
        *,
        dtype: Dtype,
        window_tokens: int,
        gpus: float,
    ) -> None:
        from rlhf_core.models.load import load_lm

        self.window_tokens = window_tokens
        self._device = device_for(gpus)
        self._model: Any = load_lm(model, dtype=dtype, attention="auto", trust_remote_code=True).to(self._device)
        self._tokenizer, self._stop_ids = tokenizer, list(stop_ids)

    def answer(self, prompt: Sequence[int], *, temperature: float, max_new_tokens: int) -> Iterator[str]:
        import torch
        from transformers import GenerationConfig, TextIteratorStreamer

        most = room(self.window_tokens, prompt, max_new_tokens)
        streamer = TextIteratorStreamer(self._tokenizer, skip_prompt=True, skip_special_tokens=True)
        how = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature > 0 else {"do_sample": False}
        # The folder's own generation settings are those of whoever made it; what is said here holds.
        settings = GenerationConfig(
            **how, max_new_tokens=most, eos_token_id=self._stop_ids, pad_token_id=self._tokenizer.pad_token_id
        )
        ids = torch.tensor([list(prompt)], device=self._device)
        failed: Queue[BaseException] = Queue()

        def draw() -> None:
            try:
                with torch.inference_mode():
                    self._model.generate(
                        input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings, streamer=streamer
                    )
            except BaseException as error:
                failed.put(error)
                streamer.end()

        thread = Thread(target=draw, daemon=True)
        thread.start()
        yield from streamer
        thread.join()
        if not failed.empty():
            raise failed.get()


class _VllmTalker:
    def __init__(self, model: Path, stop_ids: Sequence[int], *, dtype: Dtype, window_tokens: int, gpus: float) -> None:
        from rlhf_core.rollout.vllm_engine import ENVIRONMENT, MIN_BATCHED_TOKENS

        os.environ.update(ENVIRONMENT)
        from vllm import LLM

        self.window_tokens = window_tokens
        on_cpu = {
            "kv_cache_memory_bytes": _KV_CACHE_MIB << 20,
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(window_tokens, MIN_BATCHED_TOKENS),
        }
        self._engine: Any = LLM(
            str(model),
            dtype={"bf16": "bfloat16", "fp32": "float32"}[dtype],
            max_model_len=window_tokens,
            max_num_seqs=1,
            generation_config="vllm",
            enforce_eager=not gpus,
            trust_remote_code=True,
            **({} if gpus else on_cpu),
        ).llm_engine
        self._stop_ids, self._count = list(stop_ids), 0

    def answer(self, prompt: Sequence[int], *, temperature: float, max_new_tokens: int) -> Iterator[str]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        most = room(self.window_tokens, prompt, max_new_tokens)
        how = SamplingParams(
            temperature=temperature,
            max_tokens=most,
            stop_token_ids=self._stop_ids,
            ignore_eos=True,
            output_kind=RequestOutputKind.DELTA,
        )
        self._count += 1
        self._engine.add_request(str(self._count), {"prompt_token_ids": list(prompt)}, how)
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                yield output.outputs[0].text
