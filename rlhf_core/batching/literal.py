"""Control tokens that somebody typed: in contents their characters are text, and only the template's own are control tokens.

Before a conversation is rendered, each control token in it is broken by a mark; what is whole in the rendering is the
template's. A text with marks is encoded by a tokenizer in which the control tokens have other spellings.
"""

from __future__ import annotations

import json
import re
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from tokenizers import Tokenizer

from data_processing.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Noncharacters of Unicode, which no text may hold: the mark, and what encloses another spelling.
_MARK, _OPEN, _CLOSE = "\ufdd0", "\ufdd1", "\ufdd2"
# What answers are meant to hold as tokens: the tags of reasoning. And bytes, by which characters beyond the vocabulary are written.
_MEANT = re.compile(r"</?think(ing)?>|\[/?THINK\]|<0x[0-9A-F]{2}>")

T = TypeVar("T")


class LiteralText:
    """Marks control tokens in what people wrote, and encodes renderings of it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.items()
        self._spellings = {
            token.content: f"{_OPEN}{number}{_CLOSE}"
            for number, token in added
            if token.special and len(token.content.strip()) > 1 and not _MEANT.fullmatch(token.content)
        }
        longest_first = sorted(self._spellings, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, [*longest_first, _MARK])))

    def first_in(self, text: str) -> str | None:
        """The first control token that stands in a text."""
        found = self._control.search(text)
        return found[0] if found else None

    def marked(self, value: T) -> T:
        """A JSON value with every control token in its texts broken; raises `DataError` where that cannot be undone."""
        if isinstance(value, str):
            return self._broken(value)  # type: ignore[return-value]
        if isinstance(value, dict):
            return {name: self.marked(item) for name, item in value.items()}  # type: ignore[return-value]
        if isinstance(value, (list, tuple)):
            return [self.marked(item) for item in value]  # type: ignore[return-value]
        return value

    def encode(self, text: str) -> list[int]:
        """Token ids of a rendering: whole control tokens as such, broken ones as their characters."""
        if _MARK not in text:
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False, verbose=False)
            return ids
        respelt = self._control.sub(lambda found: self._spellings.get(found[0], ""), text)
        encoded: list[int] = self._respelling.encode(respelt, add_special_tokens=False).ids
        return encoded

    def _broken(self, text: str) -> str:
        if not self._control.search(text):
            return text
        if _MARK in text:
            raise DataError("a content holds the noncharacter U+FDD0, which no text may hold: remove it")
        if not self._tokenizer.is_fast:
            raise DataError(
                f"a content holds {self.first_in(text)!r}, a control token of this model, which its tokenizer cannot read as text: "
                "change the row, or save the tokenizer as tokenizer.json"
            )
        return self._control.sub(lambda found: found[0][0] + _MARK + found[0][1:], text)

    @cached_property
    def _respelling(self) -> Tokenizer:
        """The same tokenizer, to which a control token is one only by its other spelling."""
        state: dict[str, Any] = json.loads(self._tokenizer.backend_tokenizer.to_str())
        for token in state["added_tokens"]:
            token["content"] = self._respelt(token["content"])
        model = state["model"]
        if isinstance(vocabulary := model.get("vocab"), dict):
            model["vocab"] = {self._respelt(piece): number for piece, number in vocabulary.items()}
        elif vocabulary is not None:
            model["vocab"] = [[self._respelt(piece), *rest] for piece, *rest in vocabulary]
        if model.get("unk_token"):
            model["unk_token"] = self._respelt(model["unk_token"])
        state |= {"post_processor": None, "truncation": None, "padding": None}
        return Tokenizer.from_str(json.dumps(state))

    def _respelt(self, piece: str) -> str:
        return self._spellings.get(piece, piece)
