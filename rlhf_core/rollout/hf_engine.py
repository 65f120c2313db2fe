"""Generation with transformers: slower than vLLM, but it runs wherever the trainer runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from data_processing.errors import ConfigError
from rlhf_core.config import Dtype
from rlhf_core.models.load import load_lm
from rlhf_core.rollout.base import Generation, Sampling, check_prompts

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class HfGenerator:
    """Batched sampling with a key-value cache; implements `rlhf_core.rollout.base.Generator`.

    `max_num_seqs` responses are drawn at a time; prompt and response together hold at most `max_model_len` tokens.
    """

    name = "hf"

    def __init__(self, model: Path, *, dtype: Dtype, max_model_len: int, max_num_seqs: int, trust_remote_code: bool) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        lm = load_lm(model, dtype=dtype, attention="sdpa", trust_remote_code=trust_remote_code)
        self._model: PreTrainedModel = lm.to(device).eval()
        self._device = device
        self._max_model_len = max_model_len
        self._max_num_seqs = max_num_seqs
        self._version = 0

    @property
    def weight_version(self) -> int:
        """The version given with the latest `update_weights`; 0 for the weights of the model folder."""
        return self._version

    def update_weights(self, state: Mapping[str, Tensor], version: int) -> None:
        """Copy `state` into the model. Only weights tied to a given one may be missing, else `ConfigError`."""
        own = self._model.state_dict()
        given = {own[name].data_ptr() for name in state if name in own}
        missing = [name for name, tensor in own.items() if name not in state and tensor.data_ptr() not in given]
        unknown = [name for name in state if name not in own]
        if missing or unknown:
            raise ConfigError(f"weights for the sampler do not fit its model: missing {missing[:5]}, unknown {unknown[:5]}")
        self._model.load_state_dict(dict(state), strict=False)
        self._version = version

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int) -> list[list[Generation]]:
        """Answer `prompts` (token ids), `sampling.n` generations each; see `Generator.generate`."""
        check_prompts(prompts, self._max_model_len)
        random = torch.Generator(self._device).manual_seed(seed)
        repeated = [list(prompt) for prompt in prompts for _ in range(sampling.n)]
        done: list[Generation] = []
        for start in range(0, len(repeated), self._max_num_seqs):
            done += self._generate_batch(repeated[start : start + self._max_num_seqs], sampling, random)
        return [done[i : i + sampling.n] for i in range(0, len(done), sampling.n)]

    def _generate_batch(self, prompts: list[list[int]], sampling: Sampling, random: torch.Generator) -> list[Generation]:
        rows = [_Row(prompt, min(sampling.max_new_tokens, self._max_model_len - len(prompt))) for prompt in prompts]
        open_rows = rows
        ids, mask = _left_padded(prompts, self._device)
        cache: Any = None
        while open_rows:
            positions = (mask.cumsum(-1) - 1).clamp_min(0)[:, -ids.shape[1] :]
            out = self._model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            cache = out.past_key_values
            tokens, logprobs = _draw(out.logits[:, -1], sampling, random)
            for row, token, logprob in zip(open_rows, tokens.tolist(), logprobs.tolist(), strict=True):
                row.append(token, logprob, sampling.stop_ids)
            kept = [i for i, row in enumerate(open_rows) if row.finish_reason is None]
            ids, mask = tokens[:, None], torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            if len(kept) < len(open_rows):
                # Finished rows leave the batch, so that a few long responses do not cost as much as all.
                open_rows = [open_rows[i] for i in kept]
                index = torch.tensor(kept, device=self._device, dtype=torch.long)
                ids, mask = ids[index], mask[index]
                if kept:
                    cache.batch_select_indices(index)
        return [Generation(r.ids, r.logprobs, "stop" if r.finish_reason == "stop" else "length", self._version) for r in rows]


@dataclass(slots=True)
class _Row:
    """A response being drawn."""

    prompt: list[int]
    limit: int
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str | None = None

    def append(self, token: int, logprob: float, stop_ids: tuple[int, ...]) -> None:
        self.ids.append(token)
        self.logprobs.append(logprob)
        if token in stop_ids:
            self.finish_reason = "stop"
        elif len(self.ids) == self.limit:
            self.finish_reason = "length"


def _left_padded(prompts: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask, each [len(prompts), longest]; padding is id 0 and never attended to."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    return ids, mask


def _draw(logits: Tensor, sampling: Sampling, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """One token a row from logits [B, V] and its log-prob, both [B], in fp32."""
    temperature = 1.0 if sampling.greedy else sampling.temperature
    logprobs = torch.log_softmax(logits.float() / temperature, dim=-1)
    tokens = logprobs.argmax(-1) if sampling.greedy else torch.multinomial(logprobs.exp(), 1, generator=random)[:, 0]
    return tokens, logprobs.gather(-1, tokens[:, None])[:, 0]
