"""Tokens of a conversation turn by turn, at a cost that grows with its length and not with its square."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class GrowingTokens:
    """Tokens of a text that grows piece by piece: those of the whole text, unless a merge would change earlier ones.

    `split` is a token at which the tokenizer always splits: what precedes one changes no later token, so only the text from
    the last one on is encoded again for each piece. None encodes all of it.
    """

    def __init__(self, encode: Callable[[str], list[int]], split: str | None) -> None:
        self.ids: list[int] = []
        self._encode, self._split = encode, split
        # What later tokens depend on: text from the last split on, and where its tokens begin.
        self._text, self._start = "", 0

    def add(self, piece: str) -> int:
        """Append the tokens of `piece`; returns how many they are."""
        before = self.ids[self._start :]
        whole = self._encode(self._text + piece)
        new = whole[len(before) :] if whole[: len(before)] == before else self._encode(piece)
        self.ids += new
        self._text += piece
        return len(new)

    def end_turn(self, end_id: int) -> None:
        """Forget the text before the token that ends the turn, where the tokenizer did split there."""
        if self._split is not None and self._text.endswith(self._split) and self.ids[-1] == end_id:
            self._text, self._start = self._split, len(self.ids) - 1


def always_splits(tokenizer: PreTrainedTokenizerBase, token: str) -> bool:
    """Whether the tokenizer cuts texts at `token` before anything else, whatever stands around it."""
    added = list(tokenizer.added_tokens_decoder.values())
    cuts = any(t.content == token and not (t.normalized or t.single_word) for t in added)
    return bool(tokenizer.is_fast) and cuts and not any(token in t.content for t in added if t.content != token)
