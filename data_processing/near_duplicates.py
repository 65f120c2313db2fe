"""Texts that are nearly the same, found by MinHash: time and memory grow with the texts, not with their pairs.

A text is the set of its words in threes, whatever their case and what stands between them; a character of a script without spaces
starts a word. Two texts with the share J of these in common (Jaccard) have the same value at each of 32 places of their signatures with
probability J. Texts that agree in one of 8 bands of 4 places are compared, place by place.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

PLACES, BANDS = 32, 8
# The share of the places from which on two texts count as nearly the same; docs/data.md says what is found with it.
ALIKE = 0.75
_WORDS = 3
# Bytes below 0x80 that are part of words, in lower case, all others 0; bytes of longer characters as they are.
_FOLDED = np.array(
    [ord(chr(b).lower()) if b > 127 or chr(b).isalnum() else 0 for b in range(128)] + list(range(128, 256)), np.uint8
)
_OWN_WORD = 0xE0  # a first byte from here on is that of a character of three bytes or more
_PRIME = 0x100000001B3
_INVERSE = pow(_PRIME, -1, 2**64)
_MIXERS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9)
_NOTHING = np.uint32(0xFFFFFFFF)

Hashes = NDArray[np.uint64]
Signatures = NDArray[np.uint32]


class MinHash:
    """Signatures of texts. It keeps the powers that hashing needs, so make one and use it for all."""

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        self._factors = random.integers(2**31, size=PLACES, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
        self._summands = random.integers(2**32, size=PLACES, dtype=np.uint32)
        self._powers, self._inverses = np.ones(1, np.uint64), np.ones(1, np.uint64)

    def signatures(self, texts: pa.StringArray) -> Signatures:
        """uint32[texts, PLACES]; all ones for a text without words."""
        words, of_row = self._words(texts)
        found = np.full((len(texts), PLACES), _NOTHING)
        if not len(words):
            return found
        threes = (_threes(words, of_row) >> np.uint64(32)).astype(np.uint32)
        firsts = np.flatnonzero(np.diff(of_row, prepend=-1))
        for place in range(PLACES):
            found[of_row[firsts], place] = np.minimum.reduceat(threes * self._factors[place] + self._summands[place], firsts)
        return found

    def _words(self, texts: pa.StringArray) -> tuple[Hashes, NDArray[np.int64]]:
        """The hashes of all words, in order, and the number of the text that each is of."""
        offsets, content = _bytes_of(texts)
        folded = _FOLDED[content]
        is_part = folded > 0
        starts_text = np.zeros(len(content) + 1, bool)
        starts_text[offsets] = True
        goes_on = np.concatenate([[False], is_part[:-1]]) & ~starts_text[:-1] & (content < _OWN_WORD)
        starts = np.flatnonzero(is_part & ~goes_on)
        if not len(starts):
            return np.zeros(0, np.uint64), np.zeros(0, np.int64)
        ends = self._ends(starts, is_part, starts_text)
        self._grow(len(content) + 1)
        sums = np.concatenate([[np.uint64(0)], np.cumsum(folded * self._powers[: len(content)], dtype=np.uint64)])
        hashes = (sums[ends] - sums[starts]) * self._inverses[starts]
        return _mixed(hashes), np.searchsorted(offsets, starts, "right") - 1

    def _ends(self, starts: NDArray[np.int64], is_part: NDArray[np.bool_], starts_text: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Where each word ends: at the next word, at what is part of none, or at the next text."""
        breaks = np.flatnonzero(~is_part | starts_text[:-1])
        after = np.concatenate([breaks, [len(is_part)]])[np.searchsorted(breaks, starts, "right")]
        ends: NDArray[np.int64] = np.minimum(after, np.concatenate([starts[1:], [len(is_part)]]))
        return ends

    def _grow(self, count: int) -> None:
        if len(self._powers) < count:
            self._powers, self._inverses = (
                np.concatenate([[np.uint64(1)], np.cumprod(np.full(count - 1, factor, np.uint64), dtype=np.uint64)])
                for factor in (_PRIME, _INVERSE)
            )


def near_duplicates(signatures: Signatures) -> Iterator[tuple[int, int, float]]:
    """Texts that are nearly the same as one before: their numbers, and the share that they have in common, estimated.

    One pair for each such text, in order; a text without words is like none.
    """
    found: dict[int, tuple[int, float]] = {}
    rows = np.flatnonzero((signatures != _NOTHING).any(1))
    own = signatures[rows]
    for band in np.split(own, BANDS, axis=1):
        keys = band[:, 0].astype(np.uint64)
        for column in band.T[1:]:
            keys = _mixed(keys * np.uint64(_PRIME) + column)
        _, firsts, kind = np.unique(keys, return_index=True, return_inverse=True)
        later = np.flatnonzero(firsts[kind] != np.arange(len(keys)))
        alike = (own[later] == own[firsts[kind[later]]]).mean(1)
        for row, share in zip(later[alike >= ALIKE].tolist(), alike[alike >= ALIKE].tolist(), strict=True):
            if row not in found or share > found[row][1]:
                found[row] = int(firsts[kind[row]]), share
    for row in sorted(found):
        first, share = found[row]
        yield int(rows[row]), int(rows[first]), share


def _bytes_of(texts: pa.StringArray) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Where each text starts in the bytes of all (and where the last ends), and these bytes."""
    _, offsets, content = texts.buffers()
    places = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1].astype(np.int64)
    whole = np.frombuffer(content, np.uint8) if content is not None else np.zeros(0, np.uint8)
    return places - places[0], whole[places[0] : places[-1]]


def _threes(words: Hashes, of_row: NDArray[np.int64]) -> Hashes:
    """The hash of each word with the two that follow it in its text, as far as there are any."""
    together = words * np.uint64(_MIXERS[0])
    for distance in range(1, _WORDS):
        same = of_row[distance:] == of_row[:-distance]
        together[:-distance] += np.where(same, words[distance:], np.uint64(0)) * np.uint64(_MIXERS[distance])
    return _mixed(together)


def _mixed(hashes: Hashes) -> Hashes:
    mixed = (hashes ^ (hashes >> np.uint64(31))) * np.uint64(_MIXERS[1])
    return mixed ^ (mixed >> np.uint64(29))
