"""What a scorer is given and gives back. Scorers live one a file; nothing here scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from rlhf_core.batching.chat_template import Message
from rlhf_core.rollout.base import FinishReason, Trajectory


@dataclass(frozen=True, slots=True)
class ScoredResponse:
    """One response as a scorer sees it: messages and text for people, token ids for models, the prompt's label or None.

    `text` is without special tokens; `response_ids` are exactly what was sampled. `columns` are the further columns of the
    prompt's row, by name; `step` is the round (from 0) that the response was drawn in, `finish_reason` "stop" where it ended
    and "length" where it was cut. Where an environment has spoken, `trajectory` is who said what, and `text` the model's last turn.
    Tokens `hidden` [start, end) of `response_ids` are not attended to; models alone can read such a response.
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
    trajectory: Trajectory | None = None
    hidden: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class CreditedUnit:
    """Tokens [start, end) of a response and what they have earned together."""

    start: int
    end: int
    credit: float


@dataclass(frozen=True, slots=True)
class Scores:
    """What a source says of responses, one entry each, in order.

    `rewards`: None where the source does not apply to a response, NaN where it failed on it alone, and `failures` says why.
    `metrics` are further numbers by name, None where a response has none; `tokens` rewards of the single tokens, a number an id,
    on top of the response's own, None for a response without. `units` are what pieces of a response have earned, to be shown.
    """

    rewards: Sequence[float | None]
    metrics: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    tokens: Sequence[Sequence[float] | None] = ()
    failures: Sequence[str | None] = ()
    units: Sequence[Sequence[CreditedUnit] | None] = ()

    @classmethod
    def of(cls, given: Sequence[float | None] | Scores) -> Scores:
        """What a scorer returned."""
        return given if isinstance(given, Scores) else cls(given)

    def at(self, place: int) -> Scores:
        """What it says of one response."""
        return Scores(
            [self.rewards[place]],
            {name: [values[place]] for name, values in self.metrics.items()},
            [self.tokens[place]] if self.tokens else (),
            [self.failures[place]] if self.failures else (),
            [self.units[place]] if self.units else (),
        )

    @classmethod
    def joined(cls, parts: Sequence[Scores]) -> Scores:
        """Those of several calls, one after the other."""
        names = dict.fromkeys(name for part in parts for name in part.metrics)
        return cls(
            [value for part in parts for value in part.rewards],
            {name: [value for part in parts for value in part._filled(part.metrics.get(name, ()))] for name in names},
            [value for part in parts for value in part._filled(part.tokens)] if any(part.tokens for part in parts) else (),
            [value for part in parts for value in part._filled(part.failures)] if any(part.failures for part in parts) else (),
            [value for part in parts for value in part._filled(part.units)] if any(part.units for part in parts) else (),
        )

    def _filled(self, values: Sequence[Any]) -> Sequence[Any]:
        """One entry a response, None where there are none."""
        return values or [None] * len(self.rewards)


class Scorer(Protocol):
    """One source of reward. It may have `notes`, lines for people that are told once.

    One with `waits` true spends its time waiting for others and may be asked from several threads at once: it is asked beside the
    other sources, and for each response as soon as that has ended.
    """

    @property
    def name(self) -> str:
        """The source's name in metrics and tables."""
        ...

    def score(self, responses: Sequence[ScoredResponse]) -> Sequence[float | None] | Scores:
        """One number a response, in order, or `Scores` where there is more to say.

        Raises `TransientRewardError` for what may work at the next try; anything else it raises is final.
        """
        ...
