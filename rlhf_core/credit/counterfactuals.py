"""A response without one of its units. Source: drca.md 5."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from data_processing.errors import ConfigError
from rlhf_core.credit.spans import Span
from rlhf_core.settings.credit import Counterfactual

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def without_unit(response: Sequence[int], unit: Span, mode: Counterfactual, *, space_id: int, eos_id: int) -> list[int]:
    """The response's ids without the half-open token span `unit`.

    `mask` blanks it, `mask_truncate` blanks it and drops what follows, `delete` closes the gap. `mask_attention` leaves the ids as they are:
    who reads them is told what not to attend to.
    """
    start, end = unit
    if mode == "mask_attention":
        return list(response)
    blank = [space_id] * (end - start)
    if mode == "mask_truncate":
        return [*response[:start], *blank, eos_id]
    if mode == "mask":
        return [*response[:start], *blank, *response[end:]]
    return [*response[:start], *response[end:]]


def in_sequence(unit: Span, prompt_tokens: int, left_pad: int = 0) -> Span:
    """Where a span of a response lies in the whole sequence, behind its padding and its prompt."""
    before = left_pad + prompt_tokens
    return unit[0] + before, unit[1] + before


def space_id(tokenizer: PreTrainedTokenizerBase, given: int | None = None) -> int:
    """The one id that is decoded as a space, or `given`. Raises `ConfigError` where the vocabulary has none."""
    if given is not None:
        return given
    ids = tokenizer.encode(" ", add_special_tokens=False)
    if len(ids) == 1 and _text(tokenizer, ids[0]) == " ":
        return int(ids[0])
    found = next((i for i in range(len(tokenizer)) if _text(tokenizer, i) == " "), None)
    if found is None:
        raise ConfigError(
            "credit.mask_token_id: no token of the policy's vocabulary is a single space; say which id blanks a unit"
        )
    return found


def _text(tokenizer: PreTrainedTokenizerBase, token_id: int) -> str:
    return str(tokenizer.decode([token_id], clean_up_tokenization_spaces=False))
