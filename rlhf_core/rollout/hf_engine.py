"""Generation with transformers: slower than vLLM, but it runs wherever the trainer runs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from data_processing.errors import ConfigError
from rlhf_core.device import device_for
from rlhf_core.models.load import load_lm
from rlhf_core.precision import Dtype
from rlhf_core.rollout.base import Generation, Sampling, Tell, check_prompts
from rlhf_core.rollout.packed_linear import pack_linear_layers, why_not_packed
from rlhf_core.rollout.preallocated_cache import growing_layers, preallocate

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Ended responses leave the batch once they are this share of it: leaving copies the cache of those that stay.
ENDED_SHARE = 0.25

# How often it is told how far a batch is.
TOLD_EVERY_TOKENS = 16

# Tokens whose probabilities are added up together when one is drawn.
BLOCK = 256


class HfGenerator:
    """Batched sampling with a key-value cache; implements `rlhf_core.rollout.base.Generator`.

    A prompt is computed once, however many responses are drawn to it. `max_num_seqs` responses are drawn at a time; prompt
    and response together hold at most `max_model_len` tokens. With `gpus` above 0 it runs on a GPU.
    """

    name = "hf"
    in_batches = True

    def __init__(
        self, model: Path, *, dtype: Dtype, max_model_len: int, max_num_seqs: int, trust_remote_code: bool, gpus: float = 0.0
    ) -> None:
        device = device_for(gpus)
        lm = load_lm(model, dtype=dtype, attention="auto", trust_remote_code=trust_remote_code)
        self._model: PreTrainedModel = lm.to(device).eval()
        pack_linear_layers(self._model)
        self._device = device
        self._max_model_len = max_model_len
        self._max_num_seqs = max_num_seqs
        self._version = 0
        self._begun: list[tuple[int, Sequence[int], Sampling, int]] = []
        self.notes, self.metrics = self._seen()

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
        pack_linear_layers(self._model)
        self._version = version

    @torch.inference_mode()
    def stream(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int, tell: Tell | None = None
    ) -> Iterator[tuple[int, Generation]]:
        """Answer `prompts` (token ids), `sampling.n` generations each; see `Generator.stream`."""
        check_prompts(prompts, self._max_model_len)
        random = torch.Generator(self._device).manual_seed(seed)
        owners = [p for p in range(len(prompts)) for _ in range(sampling.n)]
        for start in range(0, len(owners), self._max_num_seqs):
            first, *_ = batch = owners[start : start + self._max_num_seqs]
            asked = prompts[first : batch[-1] + 1]
            told = _within(tell, start / len(owners), len(batch) / len(owners))
            of_prompts = torch.tensor(batch, device=self._device) - first
            longest = [sampling.max_new_tokens] * len(asked)
            for row, generation in self._batch(asked, of_prompts, sampling, random, longest=longest, tell=told):
                yield start + row, generation

    def begin(self, number: int, prompt: Sequence[int], sampling: Sampling, seed: int) -> None:
        """Begin one answer; see `Generator.begin`. Those of one batch differ in their longest length only."""
        check_prompts([prompt], self._max_model_len)
        self._begun.append((number, prompt, sampling, seed))

    @torch.inference_mode()
    def ended(self) -> list[tuple[int, Generation]]:
        """All that was begun, as far as it fits one batch, drawn to its end; see `Generator.ended`.

        The draws are those of the seed of the lowest number.
        """
        ordered = sorted(self._begun, key=lambda each: each[0])
        batch, self._begun = ordered[: self._max_num_seqs], ordered[self._max_num_seqs :]
        if not batch:
            return []
        numbers, prompts, samplings, seeds = zip(*batch, strict=True)
        random = torch.Generator(self._device).manual_seed(seeds[0])
        owners, longest = torch.arange(len(batch), device=self._device), [each.max_new_tokens for each in samplings]
        drawn = self._batch(prompts, owners, samplings[0], random, longest=longest, tell=lambda _: None)
        return [(numbers[row], generation) for row, generation in drawn]

    def _batch(
        self,
        prompts: Sequence[Sequence[int]],
        owners: Tensor,
        sampling: Sampling,
        random: torch.Generator,
        *,
        longest: Sequence[int],
        tell: Tell,
    ) -> Iterator[tuple[int, Generation]]:
        """One response for each of `owners` (numbers of prompts, ascending), with its place among them, as they end.

        Those to `prompts[p]` have at most `longest[p]` tokens.
        """
        ids, mask = _left_padded(prompts, self._device)
        lengths = mask.sum(1)
        logits, cache = self._forward(ids, mask, (mask.cumsum(1) - 1).clamp_min(0), None)
        limits = torch.minimum(self._max_model_len - lengths, torch.tensor(longest, device=self._device))[owners]
        n_steps = int(limits.max())
        preallocate(cache, owners, ids.shape[1] + n_steps)
        logits = logits[owners]
        # Without padding there is no mask to compute with: attention then takes its fastest path.
        room = torch.cat([mask, mask.new_ones(len(mask), n_steps)], 1)[owners] if len(set(map(len, prompts))) > 1 else None
        batch = _Open(torch.arange(len(owners), device=self._device), lengths[owners], limits, room)
        drawn = _Drawn.empty(len(owners), n_steps, self._device)
        going_on = set(range(len(owners)))
        stops = torch.tensor(sampling.stop_ids, device=self._device, dtype=torch.long)
        for step in range(n_steps):
            if step % TOLD_EVERY_TOKENS == 0:
                tell(step / n_steps)
            tokens, logprobs = _draw(logits, sampling, random)
            drawn.ids[batch.rows, step], drawn.logprobs[batch.rows, step] = tokens, logprobs
            kept = batch.going_on(tokens, stops, step)
            if len(kept) < len(going_on):
                before, going_on = going_on, set(batch.rows[kept].tolist())
                for row in sorted(before - going_on):
                    yield row, drawn.generation(row, step + 1, sampling.stop_ids, self._version)
            if not going_on:
                break
            if len(kept) <= (1 - ENDED_SHARE) * len(tokens):
                batch, tokens = batch.select(kept), tokens[kept]
                cache.reorder_cache(kept)
            # A response that has ended may stay for a while, and must not run out of positions.
            positions = (batch.prompt_lengths[:, None] + step).clamp_max(self._max_model_len - 1)
            seen = None if batch.mask is None else batch.mask[:, : ids.shape[1] + step + 1]
            logits, cache = self._forward(tokens[:, None], seen, positions, cache)

    @torch.inference_mode()
    def _seen(self) -> tuple[tuple[str, ...], dict[str, float]]:
        """What of the fast ways of decoding this model and device have, by drawing behind one token."""
        one = torch.ones(1, 1, dtype=torch.long, device=self._device)
        _, cache = self._forward(one, None, one - 1, None)
        growing, layers = growing_layers(cache), len(cache.layers)
        notes = [
            f"{len(growing)} of the {layers} layers of the key-value cache ({', '.join(sorted(set(growing)))}) are not allocated "
            "beforehand, so that decoding copies them"
        ] * bool(growing)
        if reason := why_not_packed(self._model):
            notes.append(f"linear layers are decoded with as they are, which is slower: {reason}")
        shares = {
            "generation/kv_preallocated": 1 - len(growing) / max(layers, 1),
            "generation/linear_packed": float(reason is None),
        }
        return tuple(notes), {"generation/vllm": 0.0, **shares}

    def _forward(self, ids: Tensor, mask: Tensor | None, positions: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """Logits [B, V] that follow the last of `ids` [B, S], and the cache with all of them in it."""
        out = self._model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return out.logits[:, -1], out.past_key_values


@dataclass(slots=True)
class _Open:
    """The responses that are being drawn; all tensors have one row for each. `mask` [B, S] covers prompt and response."""

    rows: Tensor
    prompt_lengths: Tensor
    limits: Tensor
    mask: Tensor | None

    def going_on(self, tokens: Tensor, stops: Tensor, step: int) -> Tensor:
        """Places in the batch of the responses that `tokens`, drawn in `step` (from 0), do not end."""
        self.limits = self.limits.masked_fill((tokens[:, None] == stops).any(1), 0)
        return (self.limits > step + 1).nonzero()[:, 0]

    def select(self, kept: Tensor) -> _Open:
        """Only those at the places `kept`."""
        mask = None if self.mask is None else self.mask[kept]
        return _Open(self.rows[kept], self.prompt_lengths[kept], self.limits[kept], mask)


@dataclass(frozen=True, slots=True)
class _Drawn:
    """All responses, [R, T]; what stands beyond a response's end means nothing."""

    ids: Tensor
    logprobs: Tensor

    @classmethod
    def empty(cls, n_rows: int, n_steps: int, device: torch.device) -> _Drawn:
        shape = (n_rows, n_steps)
        return cls(torch.zeros(shape, dtype=torch.long, device=device), torch.zeros(shape, device=device))

    def generation(self, row: int, length: int, stop_ids: Collection[int], version: int) -> Generation:
        """The response of a row, which has ended after `length` tokens."""
        ids, logprobs = self.ids[row, :length].tolist(), self.logprobs[row, :length].tolist()
        return Generation(ids, logprobs, "stop" if ids[-1] in stop_ids else "length", version)


def _within(tell: Tell | None, start: float, share: float) -> Tell:
    """What tells of a part of the work, a `share` of the whole that begins at `start`, as of the whole."""
    return (lambda done: tell(start + share * done)) if tell else (lambda _: None)


def _left_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask, each [len(prompts), longest]; padding is id 0 and never attended to."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    return ids, mask


def _draw(logits: Tensor, sampling: Sampling, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """One token a row from logits [B, V], which are used up, and its log-prob in fp32; both [B]."""
    weights = logits.float()
    weights -= weights.amax(-1, keepdim=True)
    if not sampling.greedy and sampling.temperature != 1.0:
        weights /= sampling.temperature
    # exp(logit) / total is the probability. In place: on a CPU a fresh [B, V] costs more than what is computed in it.
    blocks = _blocks(weights.exp_())
    totals = blocks.sum(-1).double()
    tokens = weights.argmax(-1) if sampling.greedy else _draw_tokens(blocks, totals, random).clamp_max(weights.shape[-1] - 1)
    drawn = weights.gather(-1, tokens[:, None])[:, 0].double()
    return tokens, (drawn / totals.sum(-1)).log().float()


def _blocks(weights: Tensor) -> Tensor:
    """[B, V] as [B, V / BLOCK, BLOCK], with zeros after the last column where it does not divide."""
    missing = -weights.shape[-1] % BLOCK
    return (functional.pad(weights, (0, missing)) if missing else weights).view(len(weights), -1, BLOCK)


def _draw_tokens(blocks: Tensor, totals: Tensor, random: torch.Generator) -> Tensor:
    """Tokens [B] with probabilities in proportion to `blocks` [B, N, BLOCK], whose sums are `totals` [B, N].

    Two random numbers a row, at which cumulated weights are inverted: one chooses the block, one the token inside it.
    """
    numbers = torch.rand(len(blocks), 2, dtype=torch.float64, device=blocks.device, generator=random)
    block = _invert(totals, numbers[:, :1])
    inside = _invert(blocks[torch.arange(len(blocks), device=blocks.device), block], numbers[:, 1:])
    return block * BLOCK + inside


def _invert(weights: Tensor, numbers: Tensor) -> Tensor:
    """Where the cumulated `weights` [B, N] pass the share `numbers` [B, 1] of their sum, [B]; in fp64 no rare one is lost."""
    cumulated = weights.double().cumsum(-1)
    index = torch.searchsorted(cumulated, numbers * cumulated[:, -1:], right=True)
    return index[:, 0].clamp_max(weights.shape[-1] - 1)
