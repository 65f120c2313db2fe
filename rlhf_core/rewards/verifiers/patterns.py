"""Regular expressions on text that nobody vouches for: a search that takes too long is given up.

The regex library looks at the clock while it backtracks, in whatever thread it is.
"""

from __future__ import annotations

from collections.abc import Callable

LIMIT_S = 1.0


def found(pattern: str, *, whole: bool = False) -> Callable[[str, float], bool]:
    """A function of a text and of seconds: whether the pattern is in it, or is `whole` of it. It raises `TimeoutError`."""
    import regex

    compiled = regex.compile(pattern)
    match = compiled.fullmatch if whole else compiled.search
    return lambda text, limit_s: match(text, timeout=limit_s) is not None


def last_group(pattern: str) -> Callable[[str], str | None]:
    """A function of a text: the group of the pattern's last match; None where there is none, or none within `LIMIT_S`."""
    import regex

    compiled = regex.compile(pattern)

    def read(text: str) -> str | None:
        try:
            matches = [match.span(1) for match in compiled.finditer(text, timeout=LIMIT_S)]
        except TimeoutError:
            return None
        return text[slice(*matches[-1])] if matches and matches[-1][0] >= 0 else None

    return read
