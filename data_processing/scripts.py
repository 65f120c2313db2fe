"""Which script a text is written in, by the ranges of Unicode that its letters are from."""

from __future__ import annotations

import numpy as np

_LOOKED_AT = 4000  # characters of a text
NO_LETTERS, OTHER, HAN, KANA, JAPANESE = "no letters", "other", "Han", "Kana", "Japanese (Han and Kana)"
_RANGES = (
    (0x41, 0x5A, "Latin"),
    (0x61, 0x7A, "Latin"),
    (0xC0, 0x24F, "Latin"),
    (0x370, 0x3FF, "Greek"),
    (0x400, 0x52F, "Cyrillic"),
    (0x530, 0x58F, "Armenian"),
    (0x590, 0x5FF, "Hebrew"),
    (0x600, 0x6FF, "Arabic"),
    (0x750, 0x77F, "Arabic"),
    (0x8A0, 0x8FF, "Arabic"),
    (0x900, 0x97F, "Devanagari"),
    (0x980, 0x9FF, "Bengali"),
    (0xA00, 0xA7F, "Gurmukhi"),
    (0xA80, 0xAFF, "Gujarati"),
    (0xB80, 0xBFF, "Tamil"),
    (0xC00, 0xC7F, "Telugu"),
    (0xC80, 0xCFF, "Kannada"),
    (0xD00, 0xD7F, "Malayalam"),
    (0xE00, 0xE7F, "Thai"),
    (0x10A0, 0x10FF, "Georgian"),
    (0x1100, 0x11FF, "Hangul"),
    (0x1200, 0x137F, "Ethiopic"),
    (0x1E00, 0x1EFF, "Latin"),
    (0x1F00, 0x1FFF, "Greek"),
    (0x3040, 0x30FF, KANA),
    (0x3130, 0x318F, "Hangul"),
    (0x31F0, 0x31FF, KANA),
    (0x3400, 0x4DBF, HAN),
    (0x4E00, 0x9FFF, HAN),
    (0xAC00, 0xD7AF, "Hangul"),
    (0xF900, 0xFAFF, HAN),
    (0xFB50, 0xFDFF, "Arabic"),
    (0xFE70, 0xFEFE, "Arabic"),
    (0x20000, 0x3134F, HAN),
)
_NAMES = sorted({name for _, _, name in _RANGES})
# Where a range starts its script's number stands, where it ends 0; so the number at the last bound before a character is its script's.
_BOUNDS = np.array([bound for start, end, _ in _RANGES for bound in (start, end + 1)], np.uint32)
_NUMBERS = np.array([number for _, _, name in _RANGES for number in (_NAMES.index(name) + 1, 0)])


def script_of(text: str) -> str:
    """The script of most of a text's letters, of its first 4,000 characters; Japanese where it mixes Han and Kana."""
    letters = "".join(filter(str.isalpha, text[:_LOOKED_AT]))
    if not letters:
        return NO_LETTERS
    characters = np.frombuffer(letters.encode("utf-32-le", "replace"), np.uint32)
    places = np.searchsorted(_BOUNDS, characters, "right")
    counts = np.bincount(np.where(places > 0, _NUMBERS[places - 1], 0), minlength=len(_NAMES) + 1)
    found = dict(zip([OTHER, *_NAMES], counts.tolist(), strict=True))
    main = max(found, key=found.__getitem__)
    return JAPANESE if main in (HAN, KANA) and found[KANA] and found[HAN] else main
