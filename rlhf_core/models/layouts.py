"""Which ways of laying rows out a model computes right: seen on two random rows when it is loaded, never assumed.

Attention alone can keep the rows of a packed line apart. Convolutions, recurrent states and positions that a model counts
itself run on from one row into the next, and nothing but the numbers says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from data_processing.errors import ConfigError
from rlhf_core.batching.collate import ModelBatch, collate
from rlhf_core.batching.rows import TokenRow
from rlhf_core.models.attention import attend_plainly, attends_by_segment
from rlhf_core.settings.training import Packing

# Long enough for convolutions, windows and states to run over visibly; of two lengths, so that one row is padded.
PROMPT_TOKENS, RESPONSE_TOKENS = 12, (20, 13)
# Readings that are no further apart (nats, the largest over tokens) are the same.
BOUND = 1e-4
# What rounding may do (nats, the mean over tokens) where a row is seen not to depend on its neighbour. Measured on a CPU, the
# largest over tokens: in fp32 sound models differ by at most 8e-6 (70 tiny architectures) and 4e-5 (the packaged one, mean 6e-7),
# leaking ones by 0.03 to 8. In bf16 sound ones differ by up to 0.4 (tiny mixtures of experts, where rounding changes who is
# asked) and 0.33 (the packaged one, mean 0.06), leaking ones by 0.004 to 10: there the size does not tell, the neighbour does.
ROUNDING, LOW_PRECISION_ROUNDING = 1e-4, 0.25
# How much more a row may change with its neighbour in a line than in a padded batch. There it changes not at all, but for
# mixtures of experts on some kernels, whose rounding depends on how many tokens an expert gets.
LEAK_FACTOR = 4.0

# What is read from the model at the targets of a batch, [n_rows, T]: log-probs, or scores (log-odds), in nats.
Read = Callable[[ModelBatch], Tensor]
# What the model itself says of one row, `ids` [1, S]: the same numbers for its last tokens, for as many as it tells.
Own = Callable[[Tensor], Tensor]
# Of each row, a value for every token after the prompt.
Values = list[Tensor]


@dataclass(frozen=True, slots=True)
class Layouts:
    """How batches for a module are to be made: rows `packed` in a line, which may hold prompts once (`shared`), or padded.

    `own_head` False says that log-probs come from the model's full logits, since what becomes of its head's outputs is not
    known. `notes` are lines for people, on whatever is not as usual.
    """

    packed: bool
    shared: bool
    own_head: bool = True
    notes: tuple[str, ...] = ()

    @property
    def metrics(self) -> dict[str, float]:
        """The same as numbers, 1 for what is fastest."""
        return {
            "layout/packed": float(self.packed),
            "layout/prompts_shared": float(self.shared),
            "layout/own_head": float(self.own_head),
        }


class Gap(NamedTuple):
    """How far two readings of the same tokens are apart (nats), or why there was nothing to compare."""

    largest: float
    mean: float
    error: str = ""

    def __str__(self) -> str:
        return self.error or f"they differ by up to {self.largest:.2g} nats"


def prove(hf: Any, reads: Sequence[Read], own: Own, packing: Packing) -> tuple[int, Layouts]:
    """The number of the first of `reads` that agrees with the model itself on a row alone, and the layouts that keep it so.

    Some ten forward passes over at most 60 tokens, wherever the model is. Modes, weights and random states are left as they
    were; attention by segment is given up where a packed line is right only without it.
    Raises `ConfigError` where no reading agrees, where padding or training mode change it, and where `packing` is on and wrong.
    """
    with _undisturbed(hf):
        gap = Gap(0.0, 0.0)
        for number, read in enumerate(reads):
            trial = _Trial(hf, read)
            gap = trial.gap(partial(trial.said, own))
            if trial.is_rounding(gap):
                trial.check()
                return number, trial.layouts(packing)
    raise ConfigError(f"{named(hf)}: what is read from it is not what it says itself: {gap}; choose another model or precision")


class _Trial:
    """Two rows that share a prompt, read from a model in one way: alone, and then together."""

    def __init__(self, hf: Any, read: Read) -> None:
        self._hf, self._read = hf, read
        self._rows = _random_rows(hf.config)

    def said(self, own: Own) -> Values:
        """What the model itself says of each row."""
        return [own(torch.tensor([row], device=self._hf.device)).float() for row in self._rows]

    def gap(self, other: Callable[[], Values]) -> Gap:
        """From the readings of each row alone; infinite where there are none, whatever it is that fails."""
        try:
            pairs = zip(self._alone, other(), strict=True)
            gaps = torch.cat([(one[-len(two) :] - two[-len(one) :]).abs() for one, two in pairs])
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # what a model does with a layout that it was not made for is anyone's guess
            return Gap(math.inf, math.inf, f"{type(error).__name__}: {error}")
        gaps = gaps.nan_to_num(nan=math.inf)
        return Gap(float(gaps.max()), float(gaps.mean()))

    def is_rounding(self, gap: Gap) -> bool:
        """Whether the gap is as small as rounding makes it."""
        low = self._hf.dtype.itemsize < torch.float32.itemsize
        return gap.largest <= BOUND or gap.mean <= (LOW_PRECISION_ROUNDING if low else ROUNDING)

    def check(self) -> None:
        """Raise `ConfigError` where padding or training mode change what is read."""
        padded = self.gap(partial(self._together, packed=False))
        if not self.is_rounding(padded):
            raise ConfigError(
                f"{named(self._hf)}: rows in a padded batch are not what they are alone: {padded}, so no batch of it would be "
                "right; choose another model, or try engine.attention eager"
            )
        self._hf.train()
        trained = self.gap(self._each_alone)
        self._hf.eval()
        if not self.is_rounding(trained):
            raise ConfigError(
                f"{named(self._hf)}: in training mode it is not the model that it is in eval mode: {trained}; turn off in its "
                "config.json what is random there, or choose another model"
            )

    def layouts(self, packing: Packing) -> Layouts:
        """How its batches are to be made; raises `ConfigError` where they are to be packed and would be wrong."""
        if packing is Packing.off:
            return Layouts(packed=False, shared=False)
        gap = self._gap_in_line(1)
        if gap and attends_by_segment(self._hf):
            # Some models do not hand segments on to their attention, and keep rows apart by position ids all the same.
            attend_plainly(self._hf)
            gap = self._gap_in_line(1)
        if not gap:
            notes = self._why_not_shared()
            return Layouts(packed=True, shared=not notes, notes=notes)
        seen = f"{named(self._hf)}: rows in a packed line are not what they are alone: {gap}"
        if packing is Packing.on:
            raise ConfigError(f"engine.packing is 'on', and {seen}; set it to 'auto' or 'off'")
        return Layouts(packed=False, shared=False, notes=(f"{seen}; batches are padded instead",))

    def _why_not_shared(self) -> tuple[str, ...]:
        """Why prompts cannot be held once in a packed line; nothing where they can."""
        how = "so rows that share a prompt have it computed for each of them"
        if not attends_by_segment(self._hf):
            attention = self._hf.config._attn_implementation
            return (f"{named(self._hf)}: its attention ({attention}) cannot be computed row by row, {how}",)
        gap = self._gap_in_line(PROMPT_TOKENS)
        return (
            (f"{named(self._hf)}: rows behind one copy of their prompt are not what they are alone: {gap}, {how}",) if gap else ()
        )

    def _gap_in_line(self, prompt: int) -> Gap | None:
        """None where a packed line is right; `prompt` tokens, if more than one, are held once in it."""
        gap = self.gap(partial(self._together, packed=True, prompt=prompt))
        if gap.largest <= BOUND:
            return None
        if self.is_rounding(gap) and self._leak(packed=True, prompt=prompt) <= LEAK_FACTOR * self._leak(packed=False):
            return None
        return gap

    def _leak(self, *, packed: bool, prompt: int = 1) -> float:
        """How far the second row moves with the response of the first. Shapes stay, so nothing is rounded in another way."""
        first, second = self._rows
        other = [*first[:PROMPT_TOKENS], *reversed(first[PROMPT_TOKENS:])]
        before, after = (self._values([row, second], packed=packed, prompt=prompt)[1] for row in (first, other))
        return float((before - after).abs().max())

    @cached_property
    def _alone(self) -> Values:
        return self._each_alone()

    def _each_alone(self) -> Values:
        return [self._values([row], packed=True)[0] for row in self._rows]

    def _together(self, *, packed: bool, prompt: int = 1) -> Values:
        return self._values(self._rows, packed=packed, prompt=prompt)

    def _values(self, rows: Sequence[list[int]], *, packed: bool, prompt: int = 1) -> Values:
        token_rows = [TokenRow.from_prompt_response(row[:prompt], row[prompt:]) for row in rows]
        pad_id = self._hf.config.get_text_config().pad_token_id or 0
        batch = collate(token_rows, pad_id=pad_id, packed=packed, shared=prompt > 1).to(self._hf.device)
        values = self._read(batch).float()
        return [values[i, : row.n_targets] for i, row in enumerate(token_rows)]


@contextmanager
def _undisturbed(hf: Any) -> Iterator[None]:
    """Inside: eval mode, no gradients. Afterwards mode and random states are as before."""
    training = hf.training
    hf.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng([hf.device] if hf.device.type == "cuda" else []):
            yield
    finally:
        hf.train(training)


def _random_rows(config: Any) -> list[list[int]]:
    """The same ones every time, from the middle of the vocabulary: tokens with effects of their own stand at its ends."""
    text = config.get_text_config()
    special = {value for name, value in text.to_dict().items() if name.endswith("token_id") and isinstance(value, int)}
    plain = [i for i in range(text.vocab_size // 4, text.vocab_size) if i not in special][: text.vocab_size // 2]
    picks = torch.randint(len(plain), (PROMPT_TOKENS + sum(RESPONSE_TOKENS),), generator=torch.Generator().manual_seed(0))
    ids = [plain[pick] for pick in picks.tolist()]
    middle = PROMPT_TOKENS + RESPONSE_TOKENS[0]
    return [ids[:middle], ids[:PROMPT_TOKENS] + ids[middle:]]


def named(hf: Any) -> str:
    """The model, for people."""
    return f"model type '{hf.config.model_type}' ({type(hf).__name__})"
