"""Several sources of reward, weighted and summed; what each gave is kept beside the sum, and what it could not give is marked."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

from rlhf_core.rewards.ahead import Ahead
from rlhf_core.rewards.base import CreditedUnit, ScoredResponse, Scorer, Scores
from rlhf_core.rewards.errors import InfiniteRewardError, TransientRewardError
from rlhf_core.rewards.weighing import Running, Scale, Weighing

LONGEST_WAIT_S = 60.0

Ask = Callable[[Sequence[ScoredResponse]], Sequence[float | None] | Scores]


@dataclass(frozen=True)
class Rewards:
    """`total[i]` is the weighted sum for response i, None where it is invalid; `by_source[name][i]` is what a source gave.

    A source gives None where it does not apply to a response: the sum is that of the others. It gives NaN where it failed
    on it: the response is invalid, as is one that no source applies to. `asked_again` says which calls were repeated, and why.
    `metrics[source/name]` are further numbers that sources gave, one a response, None where there is none. `tokens[i]` are rewards
    of the single tokens of response i, weighted and summed, on top of its total; None where no source gave any. `running` are the
    statistics by source, after these, of those that are put on a scale of all responses so far. `failures[source][i]` says why a
    source gave NaN for response i, where it said so. `units[i]` are what pieces of response i have earned, where a source says.
    `notes` are the sources' lines for people, as of now.
    """

    total: list[float | None]
    by_source: Mapping[str, Sequence[float | None]]
    asked_again: tuple[str, ...] = ()
    metrics: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    tokens: Sequence[Sequence[float] | None] = ()
    running: Mapping[str, tuple[int, float, float]] = field(default_factory=dict)
    failures: Mapping[str, Sequence[str | None]] = field(default_factory=dict)
    units: Sequence[Sequence[CreditedUnit] | None] = ()
    notes: tuple[str, ...] = ()

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
            all_placed(self.failures, others.failures),
            placed(self.units, others.units) if self.units or others.units else (),
            others.notes,
        )

    def without(self, is_left_out: Sequence[bool]) -> Rewards:
        """The same, invalid where that is true, whatever sources gave."""
        total = [None if left_out else own for own, left_out in zip(self.total, is_left_out, strict=True)]
        return replace(self, total=total)

    def with_part(self, name: str, values: Sequence[float]) -> Rewards:
        """The same with one more part, a number a response, in the sums of those that have one."""
        total = [None if own is None else own + value for own, value in zip(self.total, values, strict=True)]
        return replace(self, total=total, by_source={**self.by_source, name: values})

    def without_part(self, name: str) -> Rewards:
        """The same without a part that was added so; as it is where there is none."""
        if name not in self.by_source:
            return self
        total = [
            None if own is None else own - (value or 0.0) for own, value in zip(self.total, self.by_source[name], strict=True)
        ]
        return replace(self, total=total, by_source={other: values for other, values in self.by_source.items() if other != name})

    @property
    def worth(self) -> list[float | None]:
        """What each response earns in all: its own reward and those of its tokens; None where it is invalid."""
        tokens = self.tokens or [None] * len(self.total)
        return [None if own is None else own + math.fsum(its or ()) for own, its in zip(self.total, tokens, strict=True)]

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
        reasons = [f"reward '{name}' gave NaN for {n}{self._first_failure(name)}" for name, n in failed.items() if n]
        return ", ".join(reasons + [f"none of {list(self.by_source)} applies to {unclaimed}"] * bool(unclaimed))

    def _first_failure(self, name: str) -> str:
        said = next((failure for failure in self.failures.get(name, ()) if failure), None)
        return f", the first: {said}" if said else ""


@dataclass(frozen=True, slots=True)
class Retries:
    """How often a call that may work at the next try is made again, `wait_s` seconds later, each time twice as long."""

    count: int = 0
    wait_s: float = 1.0

    def pause_s(self, tries: int) -> float:
        """Seconds to wait after that many tries, at most `LONGEST_WAIT_S`."""
        return min(self.wait_s * 2.0 ** (tries - 1), LONGEST_WAIT_S)


@dataclass(frozen=True, slots=True)
class _Source:
    """A scorer under its name, what its numbers are weighed and scaled with, and what it does ahead of being asked."""

    name: str
    scorer: Scorer
    scale: Scale
    ahead: Ahead | None


class ComposedReward:
    """A weighted sum of scorers over a run of `rounds`, each under the name it is given, or its own.

    A name that repeats gets a number (`length`, `length_2`).
    """

    def __init__(
        self,
        scorers: Sequence[tuple[Scorer, Weighing]],
        retries: Retries | None = None,
        rounds: int = 1,
        names: Sequence[str | None] = (),
    ) -> None:
        given = names or [None] * len(scorers)
        own = [name or scorer.name for name, (scorer, _) in zip(given, scorers, strict=True)]
        repeats = [own[:i].count(name) for i, name in enumerate(own)]
        unique = [f"{name}_{n + 1}" if n else name for name, n in zip(own, repeats, strict=True)]
        self._sources = [
            _Source(name, scorer, Scale(weighing), Ahead(scorer) if getattr(scorer, "waits", False) else None)
            for name, (scorer, weighing) in zip(unique, scorers, strict=True)
        ]
        self._retries, self._last_round = retries or Retries(), max(rounds - 1, 1)

    def restore(self, running: Mapping[str, tuple[int, float, float]]) -> None:
        """Go on with the statistics of earlier rounds."""
        for source in self._sources:
            if source.name in running:
                source.scale.running = Running(*running[source.name])

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines for people on how the sources work, from those that have any."""
        return tuple(note for source in self._sources for note in getattr(source.scorer, "notes", ()))

    @property
    def waits(self) -> bool:
        """Whether any source spends its time waiting, so that it pays to begin with it as soon as responses end."""
        return any(source.ahead is not None for source in self._sources)

    def begin(self, responses: Sequence[ScoredResponse]) -> None:
        """Have the sources that wait work on these, which they will be asked for."""
        for source in self._sources:
            if source.ahead is not None:
                source.ahead.begin(responses)

    def score(self, responses: Sequence[ScoredResponse], *, is_learnt: bool = True, keeps_scale: bool = False) -> Rewards:
        """Ask every source, one that may answer at the next try again and again; those that wait beside the others.

        What is not learnt from is put on no scale, or with `keeps_scale` on the running one as it is: its sums are those of the numbers
        that sources gave.
        Raises `TransientRewardError` for one that still does not, `InfiniteRewardError` for an infinite number.
        """
        asked_again: list[str] = []
        found = self._ask_all(responses, asked_again, is_learnt=is_learnt)
        metrics: dict[str, Sequence[float | None]] = {}
        tokens: list[list[float] | None] = [None] * len(responses)
        weights: dict[str, float] = {}
        share = min(responses[0].step / self._last_round, 1.0) if responses else 0.0
        for source in self._sources:
            name, scores = source.name, found[source.name]
            weights[name] = weight = source.scale.weighing.at(share)
            _check_finite(name, scores.rewards, responses)
            metrics |= {f"{name}/{what}": values for what, values in scores.metrics.items()}
            for i, values in enumerate(scores.tokens):
                tokens[i] = _summed(tokens[i], values, weight)
            if source.scale.weighing.final_weight is not None:
                metrics[f"{name}/weight"] = [weight] * len(responses)
        by_source = {name: scores.rewards for name, scores in found.items()}
        prompt_ids = [response.prompt_id for response in responses]
        scaled: Mapping[str, Sequence[float | None]] = by_source
        if is_learnt:
            scaled = {s.name: s.scale(by_source[s.name], prompt_ids) for s in self._sources}
        elif keeps_scale:
            scaled = {s.name: s.scale.kept(by_source[s.name]) for s in self._sources}
        totals = [_sum({name: values[i] for name, values in scaled.items()}, weights) for i in range(len(responses))]
        running = {
            s.name: (s.scale.running.count, s.scale.running.mean, s.scale.running.squares)
            for s in self._sources
            if s.scale.weighing.normalise == "running"
        }
        failures = {name: scores.failures for name, scores in found.items() if any(scores.failures)}
        units = next((scores.units for scores in found.values() if scores.units), ())
        return Rewards(totals, by_source, tuple(asked_again), metrics, tokens, running, failures, units, self.notes)

    def _ask_all(self, responses: Sequence[ScoredResponse], asked_again: list[str], *, is_learnt: bool) -> dict[str, Scores]:
        """What each source says. Functions stay in this thread, which they may set alarms in."""
        pool = ThreadPoolExecutor(max_workers=len(self._sources) or 1)
        try:
            begun = {
                # What nobody learns from was not asked for ahead, and is no reason to forget what was.
                s.name: pool.submit(self._ask, s, s.ahead.score if is_learnt else s.scorer.score, responses, asked_again)
                for s in self._sources
                if s.ahead is not None
            }
            here = {s.name: self._ask(s, s.scorer.score, responses, asked_again) for s in self._sources if s.ahead is None}
            return {s.name: begun[s.name].result() if s.name in begun else here[s.name] for s in self._sources}
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _ask(self, source: _Source, ask: Ask, responses: Sequence[ScoredResponse], asked_again: list[str]) -> Scores:
        for tries in count(1):
            try:
                return Scores.of(ask(responses))
            except TransientRewardError as error:
                if tries > self._retries.count:
                    raise TransientRewardError(
                        f"reward '{source.name}' failed {tries} times in a row, at last with: {error}; the rounds done are kept, and "
                        "the stage is tried again. online.reward_retries and online.reward_retry_wait_s say how long to wait here"
                    ) from error
                asked_again.append(f"reward '{source.name}' is asked again: {error}")
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
