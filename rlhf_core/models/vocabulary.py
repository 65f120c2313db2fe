"""Tokens of a tokenizer against the rows of an embedding: whatever a tokenizer gives must have a row."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from data_processing.errors import ConfigError
from rlhf_core.models.load import load_tokenizer
from rlhf_core.models.weight_files import shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def tokens_without_row(tokenizer: PreTrainedTokenizerBase, embedding_rows: int) -> list[str]:
    """The tokens whose ids are beyond the embedding, by id."""
    beyond = {token: number for token, number in tokenizer.get_vocab().items() if number >= embedding_rows}
    return sorted(beyond, key=beyond.__getitem__)


def without_tokens(
    tokenizer: PreTrainedTokenizerBase, gone: Collection[str], embedding_rows: int, *, trust_remote_code: bool
) -> PreTrainedTokenizerBase:
    """The tokenizer without the added tokens `gone`, whose text is then encoded as any other.

    Raises `ConfigError` where they are not added ones, and cannot be taken out.
    """
    with TemporaryDirectory() as folder:
        place = Path(folder)
        tokenizer.save_pretrained(place)
        for path in place.glob("*.json"):
            path.write_text(json.dumps(_without(json.loads(path.read_text(encoding="utf-8")), set(gone))), encoding="utf-8")
        left = load_tokenizer(place, trust_remote_code=trust_remote_code)
    if remaining := tokens_without_row(left, embedding_rows):
        raise not_resized(tokenizer, embedding_rows, remaining)
    return left


def not_resized(tokenizer: PreTrainedTokenizerBase, embedding_rows: int, tokens: Collection[str]) -> ConfigError:
    """The error for tokens that are needed and have no row."""
    return ConfigError(
        f"the tokenizer of the model has ids up to {max(tokenizer.get_vocab().values())} and its embedding {embedding_rows} rows: "
        f"{shown(sorted(tokens))} would have none. Give the embedding rows for them "
        "(model.resize_token_embeddings(len(tokenizer)), train those, save both), or use the model's own tokenizer and template"
    )


def _without(value: Any, gone: set[str]) -> Any:
    """A value of a tokenizer's file without what names a token that is gone: as text, or as a token with its content."""
    if isinstance(value, dict):
        return {name: _without(inner, gone) for name, inner in value.items() if name not in gone and not _names(inner, gone)}
    if isinstance(value, list):
        return [_without(inner, gone) for inner in value if not _names(inner, gone)]
    return value


def _names(value: Any, gone: set[str]) -> bool:
    return (value.get("content") if isinstance(value, dict) else value) in gone if isinstance(value, (str, dict)) else False
