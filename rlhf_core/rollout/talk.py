"""A model that is talked to: one answer at a time, handed out as it is drawn. Training and evaluation sample by `Generator` instead."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import TYPE_CHECKING, Any

from data_processing.errors import ConfigError
from rlhf_core.device import device_for
from rlhf_core.precision import Dtype

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def room(window_tokens: int, prompt: Sequence[int], max_new_tokens: int) -> int:
    """Tokens that an answer may have; raises `ConfigError` where the prompt leaves room for none."""
    left = window_tokens - len(prompt)
    if left < 1:
        raise ConfigError(
            f"the conversation has {len(prompt)} tokens of {window_tokens}; begin a new one, or raise --max-length-tokens"
        )
    return min(left, max_new_tokens)


class Talker:
    """Answers token ids with text, with the model of a folder by transformers, which is ready soonest.

    Conversations are at most `max_length_tokens` long, and no longer than the model's positions.
    """

    def __init__(
        self,
        model: Path,
        tokenizer: PreTrainedTokenizerBase,
        stop_ids: Sequence[int],
        *,
        dtype: Dtype,
        max_length_tokens: int,
        gpus: float,
    ) -> None:
        from transformers import AutoConfig

        from rlhf_core.models.load import load_lm

        positions = getattr(AutoConfig.from_pretrained(model, trust_remote_code=True), "max_position_embeddings", None)
        self.window_tokens = min(max_length_tokens, positions or max_length_tokens)
        self._device = device_for(gpus)
        self._model: Any = load_lm(model, dtype=dtype, attention="auto", trust_remote_code=True).to(self._device)
        self._tokenizer, self._stop_ids = tokenizer, list(stop_ids)

    def answer(self, prompt: Sequence[int], *, temperature: float, max_new_tokens: int) -> Iterator[str]:
        """The pieces of one answer; temperature 0 always takes the likeliest token. Raises `ConfigError` without room for one."""
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
