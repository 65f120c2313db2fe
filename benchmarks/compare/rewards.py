"""The reward of the online cases: cheap, and different from response to response."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def even_share(responses: Sequence[str], **_: Any) -> list[float]:
    """Share of a response's words whose number is even."""
    return [_even_share(text.split()) for text in responses]


def reward_for_peer(completions: Sequence[list[dict[str, str]]], **_: Any) -> list[float]:
    """The same of conversational completions."""
    return even_share([completion[0]["content"] for completion in completions])


def _even_share(words: Sequence[str]) -> float:
    return sum(word[-1] in "02468" for word in words) / max(len(words), 1)
