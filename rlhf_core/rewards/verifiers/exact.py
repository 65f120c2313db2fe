"""The answer to the letter, as a reward."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

from rlhf_core.rewards.verifiers.answers import bare, reader, whole
from rlhf_core.rewards.verifiers.verifier import Verifier, labels_of
from rlhf_core.settings.rewards.verifiers import ExactReward

if TYPE_CHECKING:
    from rlhf_core.rewards.build import Around


def build(source: ExactReward, around: Around) -> Verifier[str]:
    """From settings."""

    def worth(answer: str, label: str) -> float:
        """Typography around either is not what they differ in."""
        given, wanted = (folded(text, ignore_case=source.ignore_case) for text in (answer, label))
        return float(given == wanted or bare(given) == bare(wanted) != "")

    return Verifier(source.kind, labels_of(source.kind), reader(source.answer, whole), worth)


def folded(text: str, *, ignore_case: bool) -> str:
    """The text in Unicode's normal form C with single spaces; in small letters (case-folded) with `ignore_case`."""
    spaced = " ".join(unicodedata.normalize("NFC", text).split())
    return unicodedata.normalize("NFC", spaced.casefold()) if ignore_case else spaced
