"""What a scorer is given and gives back. Scorers live one a file; nothing here scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from rlhf_core.batching.chat_template import Message
from rlhf_core.rollout.base import FinishReason


@dataclass(frozen=True, slots=True)
class ScoredResponse:
    """One response as a scorer sees it: messages and text for people, token ids for models, the prompt's label or None.

    `text` is without special tokens; `response_ids` are exactly what was sampled. `columns` are the further columns of the
    prompt's row, by name; `step` is the round (from 0) that the response was drawn in, `finish_reason` "stop" where it ended
    and "length" where it was cut.
    """

    prompt_id: str
    prompt: Sequence[Message]
    label: str | None
    prompt_ids: Sequence[int]
    response_ids: Sequence[int]
    text: str
    columns: Mapping[str, Any] = field(default_factory=dict)
    step: int = 0
    finish_reason: FinishReason = "stop"


class Scorer(Protocol):
    """One source of reward."""

    @property
    def name(self) -> str:
        """The source's name in metrics and tables."""
        ...

    def score(self, responses: Sequence[ScoredResponse]) -> Sequence[float | None]:
        """One number a response, in order: None where the source does not apply to it, NaN where it failed on it alone.

        A source that also rewards tokens has `token_rewards` of the last call: a number an id of each response, None for one without.

        Raises `TransientRewardError` for what may work at the next try; anything else it raises is final.
        """
        ...
