"""Several sources of reward, weighted and summed; what each gave is kept beside the sum, and what it could not give is marked."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

from rlhf_core.rewards.base import ScoredResponse, Scorer
from rlhf_core.rewards.errors import InfiniteRewardError, TransientRewardError
from rlhf_core.rewards.weighing import Running, Scale, Weighing

LONGEST_WAIT_S = 60.0


@dataclass(frozen=True)
class Rewards:
    """`total[i]` is the weighted sum for response i, None where it is invalid; `by_source[name][i]` is what a source gave.

    A source gives None where it does not apply to a response: the sum is that of the others. It gives NaN where it failed
    on it: the response is invalid, as is one that no source applies to. `asked_again` says which calls were repeated, and why.
    `metrics[source/name]` are further numbers that sources gave, one a response, None where there is none. `tokens[i]` are rewards
    of the single tokens of response i, weighted and summed, on top of its total; None where no source gave any. `running` are the
    statistics by source, after these, of those that are put on a scale of all responses so far.
    """

    total: list[float | None]
    by_source: Mapping[str, Sequence[float | None]]
    asked_again: tuple[str, ...] = ()
    metrics: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    tokens: Sequence[Sequence[float] | None] = ()
    running: Mapping[str, tuple[int, float, float]] = field(default_factory=dict)

    @property
    def has_tokens(self) -> bool:
        """Whether any response has rewards of single tokens."""
        return any(values is not None for values in self.tokens)

    def with_rows(self, numbers: Sequence[int], others: Rewards) -> Rewards:
        """The same with the responses of these numbers replaced by those of `others`, in their order."""

        def placed(own: Sequence[Any], theirs: Sequence[Any]) -> list[Any]:
            changed = dict(zip(numbers, theirs or [None] * len(numbers), strict=True))
            return [changed.get(i, value) for i, value in enumerate(own or [None] * len(self.total))]

        def all_placed(own: Mapping[str, Sequence[Any]], theirs: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
            return {name: placed(own.get(name, ()), theirs.get(name, ())) for name in {**own, **theirs}}

        return Rewards(
            placed(self.total, others.total),
            all_placed(self.by_source, others.by_source),
            (*self.asked_again, *others.asked_again),
            all_placed(self.metrics, others.metrics),
            placed(self.tokens, others.tokens),
            others.running,
        )

    def with_part(self, name: str, values: Sequence[float]) -> Rewards:
        """The same with one more part, a number a response, in the sums of those that have one."""
        total = [None if own is None else own + value for own, value in zip(self.total, values, strict=True)]
        return replace(self, total=total, by_source={**self.by_source, name: values})

    @property
    def is_valid(self) -> list[bool]:
        """The responses that have a reward."""
        return [value is not None for value in self.total]

    @property
    def invalid_share(self) -> float:
        """Share of the responses without a reward."""
        return self.total.count(None) / len(self.total)

    def why_invalid(self) -> str:
        """Which sources left responses without a reward, and how many."""
        failed = {name: sum(map(_failed, values)) for name, values in self.by_source.items()}
        unclaimed = sum(all(value is None for value in values) for values in zip(*self.by_source.values(), strict=True))
        reasons = [f"reward '{name}' gave NaN for {n}" for name, n in failed.items() if n]
        return ", ".join(reasons + [f"none of {list(self.by_source)} applies to {unclaimed}"] * bool(unclaimed))


@dataclass(frozen=True, slots=True)
class Retries:
    """How often a call that may work at the next try is made again, `wait_s` seconds later, each time twice as long."""

    count: int = 0
    wait_s: float = 1.0

    def pause_s(self, tries: int) -> float:
        """Seconds to wait after that many tries, at most `LONGEST_WAIT_S`."""
        return min(self.wait_s * 2.0 ** (tries - 1), LONGEST_WAIT_S)


class ComposedReward:
    """A weighted sum of scorers over a run of `rounds`; a name that repeats gets a number (`length`, `length_2`)."""

    def __init__(self, scorers: Sequence[tuple[Scorer, Weighing]], retries: Retries | None = None, rounds: int = 1) -> None:
        names = [scorer.name for scorer, _ in scorers]
        repeats = [names[:i].count(name) for i, name in enumerate(names)]
        unique = [f"{name}_{n + 1}" if n else name for name, n in zip(names, repeats, strict=True)]
        self._sources = [(name, scorer, Scale(weighing)) for name, (scorer, weighing) in zip(unique, scorers, strict=True)]
        self._retries, self._last_round = retries or Retries(), max(rounds - 1, 1)

    def restore(self, running: Mapping[str, tuple[int, float, float]]) -> None:
        """Go on with the statistics of earlier rounds."""
        for name, _, scale in self._sources:
            if name in running:
                scale.running = Running(*running[name])

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines for people on how the sources work, from those that have any."""
        return tuple(note for _, scorer, _ in self._sources for note in getattr(scorer, "notes", ()))

    def score(self, responses: Sequence[ScoredResponse], *, is_learnt: bool = True) -> Rewards:
        """Ask every source, one that may answer at the next try again and again.

        What is not learnt from is put on no scale: its sums are those of the numbers that sources gave.
        Raises `TransientRewardError` for one that still does not, `InfiniteRewardError` for an infinite number.
        """
        by_source: dict[str, Sequence[float | None]] = {}
        asked_again: list[str] = []
        metrics: dict[str, Sequence[float | None]] = {}
        tokens: list[list[float] | None] = [None] * len(responses)
        weights: dict[str, float] = {}
        share = min(responses[0].step / self._last_round, 1.0) if responses else 0.0
        for name, scorer, scale in self._sources:
            weights[name] = weight = scale.weighing.at(share)
            by_source[name] = self._ask(name, scorer, responses, asked_again)
            _check_finite(name, by_source[name], responses)
            metrics |= {f"{name}/{what}": values for what, values in getattr(scorer, "metrics", {}).items()}
            for i, values in enumerate(getattr(scorer, "token_rewards", ())):
                tokens[i] = _summed(tokens[i], values, weight)
            if scale.weighing.final_weight is not None:
                metrics[f"{name}/weight"] = [weight] * len(responses)
        prompt_ids = [response.prompt_id for response in responses]
        scaled = {name: scale(by_source[name], prompt_ids) for name, _, scale in self._sources} if is_learnt else by_source
        totals = [_sum({name: values[i] for name, values in scaled.items()}, weights) for i in range(len(responses))]
        running = {
            name: (scale.running.count, scale.running.mean, scale.running.squares)
            for name, _, scale in self._sources
            if scale.weighing.normalise == "running"
        }
        return Rewards(totals, by_source, tuple(asked_again), metrics, tokens, running)

    def _ask(
        self, name: str, scorer: Scorer, responses: Sequence[ScoredResponse], asked_again: list[str]
    ) -> Sequence[float | None]:
        for tries in count(1):
            try:
                return scorer.score(responses)
            except TransientRewardError as error:
                if tries > self._retries.count:
                    raise TransientRewardError(
                        f"reward '{name}' failed {tries} times in a row, at last with: {error}; the rounds done are kept, and the "
                        "stage is tried again. online.reward_retries and online.reward_retry_wait_s say how long to wait here"
                    ) from error
                asked_again.append(f"reward '{name}' is asked again: {error}")
                time.sleep(self._retries.pause_s(tries))
        raise AssertionError("the loop has no other end")


def _sum(values: Mapping[str, float | None], weights: Mapping[str, float]) -> float | None:
    """What a response is worth; None where no source applies to it or one failed on it, 0 where there are no sources."""
    if not weights:
        return 0.0
    parts = [weights[name] * value for name, value in values.items() if value is not None]
    total = sum(parts)
    return None if not parts or math.isnan(total) else total


def _summed(so_far: list[float] | None, values: Sequence[float] | None, weight: float) -> list[float] | None:
    if values is None:
        return so_far
    return [old + weight * value for old, value in zip(so_far or [0.0] * len(values), values, strict=True)]


def _failed(value: float | None) -> bool:
    return value is not None and math.isnan(value)


def _check_finite(name: str, values: Sequence[float | None], responses: Sequence[ScoredResponse]) -> None:
    for value, response in zip(values, responses, strict=True):
        if value is not None and math.isinf(value):
            raise InfiniteRewardError(
                f"reward '{name}' gave {value} for prompt {response.prompt_id}, response {response.text[:200]!r}:"
                " a reward is a finite number; fix the source, or let it give NaN for a response that it cannot score"
            )
