"""The frame of the kinds that look for an answer: what a prompt expects, what the response answers, and what that is worth."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Generic, TypeVar

from data_processing.errors import ConfigError
from rlhf_core.rewards.base import ScoredResponse, Scores
from rlhf_core.rewards.verifiers.answers import Read

ExpectedT = TypeVar("ExpectedT")


class UnusableLabelError(Exception):
    """What a prompt expects cannot be read as the kind reads it: no response to it can be scored."""


class OverTimeError(Exception):
    """An answer took longer to check than it may."""


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What one response is worth, and the rest of what there is to say of it."""

    reward: float | None = None
    answered: float | None = None
    timed_out: float = 0.0
    failure: str | None = None


class Verifier(Generic[ExpectedT]):
    """Scores answers with `worth(answer, expected)`, a share in [0, 1], and 0 where a response has none.

    `expected` gives what a prompt expects, None where the source does not apply to it. Either may raise `UnusableLabelError`, which
    makes the response NaN; `worth` may raise `OverTimeError`, which makes it 0. `limited` says that it may. Of the metrics "answered"
    is 1 for a response with an answer, "timed_out" (with `limited`) for one that took too long.
    """

    def __init__(
        self,
        name: str,
        expected: Callable[[ScoredResponse], ExpectedT | None],
        read: Read,
        worth: Callable[[str, ExpectedT], float],
        *,
        limited: bool = False,
    ) -> None:
        self.name = name
        self._expected, self._read, self._worth, self._limited = expected, read, worth, limited

    def score(self, responses: Sequence[ScoredResponse]) -> Scores:
        """What the answers are worth. Raises `ConfigError` naming a prompt that lacks what the kind needs."""
        verdicts = [self._verdict(response) for response in responses]
        metrics = {"answered": [verdict.answered for verdict in verdicts]}
        if self._limited:
            metrics["timed_out"] = [verdict.timed_out for verdict in verdicts]
        return Scores([verdict.reward for verdict in verdicts], metrics, failures=[verdict.failure for verdict in verdicts])

    def _verdict(self, response: ScoredResponse) -> _Verdict:
        answered = None
        try:
            if (expected := self._expected(response)) is None:
                return _Verdict()
            answer = self._read(response.text)
            answered = float(answer is not None)
            return _Verdict(0.0 if answer is None else self._worth(answer, expected), answered)
        except UnusableLabelError as error:
            return _Verdict(math.nan, answered, failure=f"prompt {response.prompt_id}: {error}")
        except OverTimeError:
            return _Verdict(0.0, answered, timed_out=1.0)


def labels_of(kind: str) -> Callable[[ScoredResponse], str]:
    """What takes a response's label; it raises `ConfigError` naming a prompt without one."""

    def label(response: ScoredResponse) -> str:
        if response.label is None or not response.label.strip():
            raise ConfigError(
                f"rewards: kind '{kind}' needs the right answer as label of every prompt; prompt {response.prompt_id} has none: give "
                "its row a column 'label' (docs/data.md), or use a kind that needs none"
            )
        return response.label

    return label


def need(library: str, kind: str) -> None:
    """Raise `ConfigError` where the module `library` is not installed."""
    if find_spec(library) is None:
        raise ConfigError(
            f"rewards: kind '{kind}' needs {library.replace('_', '-')}, which is not installed: pip install \"alignflow[rewards]\""
        )
