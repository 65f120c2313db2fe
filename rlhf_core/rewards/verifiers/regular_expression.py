"""A pattern in the response, as a reward."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlhf_core.rewards.verifiers.answers import whole
from rlhf_core.rewards.verifiers.patterns import found
from rlhf_core.rewards.verifiers.verifier import OverTimeError, Verifier
from rlhf_core.settings.rewards.verifiers import RegexReward

if TYPE_CHECKING:
    from rlhf_core.rewards.build import Around


def build(source: RegexReward, around: Around) -> Verifier[bool]:
    """From settings."""
    is_found = found(source.pattern, whole=source.whole)

    def worth(text: str, expected: bool) -> float:
        try:
            return float(is_found(text, source.limit_s))
        except TimeoutError as error:
            raise OverTimeError from error

    return Verifier(source.kind, lambda response: True, whole, worth, limited=True)
