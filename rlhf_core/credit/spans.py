"""Which characters of a response each of its generated tokens wrote. Nothing is tokenised again."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]

_REPLACEMENT = "\ufffd"


@dataclass(frozen=True, slots=True)
class Spelled:
    """The text of a response, and the half-open character span of each of its tokens: those that share a character overlap.

    A special token has an empty span. Source: drca.md 4b.
    """

    text: str
    spans: list[Span]

    def tokens_of(self, start: int, end: int) -> Span | None:
        """The half-open span of the tokens that begin within characters [start, end); None where no token does.

        A token begins at its first character that is no white space; one of white space alone at its first; an empty one nowhere.
        """
        members = [k for k, span in enumerate(self.spans) if span[0] < span[1] and start <= self._begins(span) < end]
        return (members[0], members[-1] + 1) if members else None

    def _begins(self, span: Span) -> int:
        text = self.text[span[0] : span[1]]
        return span[0] + (len(text) - len(text.lstrip()) if text.strip() else 0)


def spell(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> Spelled | None:
    """The text of generated ids and who wrote what of it; None where the tokenizer does not say so consistently.

    Byte-level vocabularies are read byte by byte; others are decoded once more with each token.
    """
    text = decoded(tokenizer, ids)
    pieces = _bytes_of(ids, tokenizer)
    spelled = spell_bytes(pieces) if pieces is not None else Spelled(text, _spans_by_decoding(ids, tokenizer))
    ends = [span[1] for span in spelled.spans]
    is_whole = spelled.text == text and (not ends or ends[-1] == len(text)) and all(a <= b for a, b in pairwise(ends))
    return spelled if is_whole else None


def spell_bytes(pieces: Sequence[bytes]) -> Spelled:
    """The text of tokens given as bytes. What is no UTF-8 is one replacement character for each longest prefix of one."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    characters: list[str] = []
    places: list[int] = []  # of each byte, its character
    held = 0
    for piece in (*pieces, None):
        for byte in piece or (() if piece is not None else (None,)):
            written = decoder.decode(b"" if byte is None else bytes([byte]), final=byte is None)
            held += byte is not None
            waiting = len(decoder.getstate()[0])
            done = held - waiting
            # Only the last byte can be a character of its own behind a broken one.
            own = 1 if len(written) > 1 else 0
            places += [len(characters)] * (done - own) + [len(characters) + 1] * own
            characters += written
            held = waiting
    spans: list[Span] = []
    read = 0
    for piece in pieces:
        if piece:
            spans.append((places[read], places[read + len(piece) - 1] + 1))
            read += len(piece)
        else:
            at = spans[-1][1] if spans else 0
            spans.append((at, at))
    return Spelled("".join(characters), spans)


def _spans_by_decoding(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[Span]:
    """A token ends where the text ends that is decoded up to it; while that ends in half a character, where the one before ended."""
    spans: list[Span] = []
    end = 0
    for k in range(len(ids)):
        before, text = end, decoded(tokenizer, ids[: k + 1])
        if not text.endswith(_REPLACEMENT) or k == len(ids) - 1:
            end = max(end, len(text))
        spans.append((before, end))
    return spans


def decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of generated ids, to the letter and without special tokens."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _bytes_of(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[bytes] | None:
    """The bytes of each token of a byte-level vocabulary; None where the vocabulary is another."""
    if not _is_byte_level(tokenizer):
        return None
    special, added = set(tokenizer.all_special_ids), tokenizer.added_tokens_decoder
    pieces = []
    for token_id, token in zip(ids, tokenizer.convert_ids_to_tokens(list(ids)), strict=True):
        if token_id in special or token is None:
            pieces.append(b"")
        elif token_id in added:
            pieces.append(added[token_id].content.encode())
        elif all(character in _byte_of() for character in token):
            pieces.append(bytes(_byte_of()[character] for character in token))
        else:
            return None
    return pieces


def _is_byte_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    decoder: Any = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    return decoder is not None and "ByteLevel" in repr(decoder)


@lru_cache(maxsize=1)
def _byte_of() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for: printable ones themselves, the others from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
