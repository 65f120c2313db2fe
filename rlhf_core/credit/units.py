"""A response in units: by the labels of its steps, or by the entropy that its tokens were drawn with. Source: drca.md 3, 4 and 6."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rlhf_core.credit.spans import Span, Spelled
from rlhf_core.settings.credit import Labels

_LABEL: dict[Labels, re.Pattern[str]] = {
    "letters+digits": re.compile(r"^\*?(?:[A-Z]{1,2}|[0-9]{1,3})\.(?=\s|\Z)", re.MULTILINE),
    "letters": re.compile(r"^\*?[A-Z]{1,2}\.(?=\s|\Z)", re.MULTILINE),
}


def label_units(text: str, max_units: int, labels: Labels = "letters+digits") -> list[Span]:
    """The character spans of the labelled steps of `text`: each from its label to the next, without white space behind.

    Only the first `max_units` labels open one, and the last of these runs to the end; what stands before the first is in none.
    """
    starts = [found.start() for found in _LABEL[labels].finditer(text)][:max_units]
    ends = [*starts[1:], len(text)][: len(starts)]
    return [(start, start + len(text[start:end].rstrip())) for start, end in zip(starts, ends, strict=True)]


def thinking_end(text: str, opening: str = "<think>", closing: str = "</think>") -> int:
    """The character that the answer begins at: behind the last closing tag and white space; the end of the text where it never closes."""
    if closing in text:
        after = text.rindex(closing) + len(closing)
        return after + len(text[after:]) - len(text[after:].lstrip())
    return len(text) if opening in text else 0


def content_region(spelled: Spelled, has_eos: bool, content_start: int) -> Span:
    """The half-open token span that units lie in: from the first token that begins at character `content_start` or later, to before an EOS."""
    end = len(spelled.spans) - has_eos
    found = spelled.tokens_of(content_start, len(spelled.text))
    return (min(found[0], end), end) if found else (end, end)


def labelled_token_units(
    spelled: Spelled, region: Span, content_start: int, max_units: int, labels: Labels = "letters+digits"
) -> list[Span]:
    """Half-open token spans of the labelled steps behind character `content_start`, within `region`, ordered and disjoint."""
    units = []
    for start, end in label_units(spelled.text[content_start:], max_units, labels):
        found = spelled.tokens_of(content_start + start, content_start + end)
        if found and (within := (max(found[0], region[0]), min(found[1], region[1])))[0] < within[1]:
            units.append(within)
    return units


def entropy_units(
    entropy: Sequence[float], region: Span, threshold: float, *, max_units: int | None = None, shift: int = 0
) -> list[Span]:
    """Half-open token spans that tile `region`: one opens at its start and at each token drawn with more than `threshold` nats.

    `entropy[t]` is that of the distribution token t was drawn from. `shift` 1 opens a unit a token later. The last of `max_units` runs
    to the end.
    """
    first, end = region
    if first >= end:
        return []
    opened = [t + shift for t in range(first, end) if entropy[t] > threshold]
    starts = [first, *(t for t in opened if first < t < end)][:max_units]
    return list(zip(starts, [*starts[1:], end], strict=True))
