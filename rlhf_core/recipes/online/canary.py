"""Answers that are known to be good or bad, scored now and then while a run goes on: rewards that drift are seen to.

A judge behind an address, a service that was restarted with another model or a function that reads the clock may come to say something
else of the same answers. The policy would learn that, and no curve of its own rewards would tell.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from data_processing.errors import ConfigError
from rlhf_core.batching.templates import Renderer
from rlhf_core.recipes.online.job import OnlineJob
from rlhf_core.recipes.online.workers import Workers
from rlhf_core.rewards.tried import CHOSEN, REJECTED, TriedAnswer, read_answers

# Differences below this, as a share of the spread, are rounding.
_SPREAD_FLOOR = 1e-6


@dataclass
class Canary:
    """The known answers of a run and what they were worth at first, which a checkpoint keeps. Nothing without `canary.every_steps`."""

    job: OnlineJob
    workers: Workers
    renderer: Renderer
    wait: Callable[..., list[list[Any]]]
    answers: list[TriedAnswer] = field(init=False)
    first: list[float | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        settings = self.job.config.canary
        self.answers = [] if settings.every_steps is None else _known_answers(self.job, self.renderer)

    def look(self, step: int) -> dict[str, float]:
        """What the rewards say of the answers before round `step` (from 0), if it is its turn; else nothing.

        `canary/drift` is the mean |change| of an answer's worth since the first look, in deviations of what they were worth then;
        `canary/right_share` the share of the pairs whose good answer is worth more.
        """
        every = self.job.config.canary.every_steps
        if every is None or step % every:
            return {}
        [[rewards]] = self.wait(self.workers["reward"].call("judge", [answer.response for answer in self.answers]))
        now: list[float | None] = rewards.worth
        self.first = self.first or now
        return canary_metrics(self.answers, self.first, now)

    def state(self) -> dict[str, Any]:
        """For `restore`."""
        return {"answers": self._digest(), "first": self.first}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint's, unless the answers are others by now."""
        if state["answers"] == self._digest():
            self.first = list(state["first"])

    def _digest(self) -> str:
        told = [(answer.row, answer.side, answer.response.text) for answer in self.answers]
        return hashlib.sha256(repr(told).encode()).hexdigest()


def canary_metrics(
    answers: Sequence[TriedAnswer], first: Sequence[float | None], now: Sequence[float | None]
) -> dict[str, float]:
    """What is told of a look: means of the good and the bad, pairs in order, and the drift; as far as there are numbers."""
    by_side: dict[str, dict[str, float | None]] = {CHOSEN: {}, REJECTED: {}}
    for answer, value in zip(answers, now, strict=True):
        by_side[answer.side][answer.row] = value
    good, bad = ([v for v in by_side[side].values() if v is not None] for side in (CHOSEN, REJECTED))
    pairs = [(a, b) for row, a in by_side[CHOSEN].items() if a is not None and (b := by_side[REJECTED].get(row)) is not None]
    changes = [abs(b - a) for a, b in zip(first, now, strict=True) if a is not None and b is not None]
    known = [value for value in first if value is not None]
    means = {"canary/good": good, "canary/bad": bad, "canary/right_share": [float(a > b) for a, b in pairs]}
    metrics = {name: fmean(values) for name, values in means.items() if values}
    if changes:
        metrics["canary/drift"] = fmean(changes) / max(pstdev(known), _SPREAD_FLOOR)
    metrics["canary/invalid_share"] = sum(value is None for value in now) / len(now)
    return metrics


def _known_answers(job: OnlineJob, renderer: Renderer) -> list[TriedAnswer]:
    """The pairs of the file, or of the data's preference table (validation split). Raises `ConfigError` where there are none."""
    settings = job.config.canary
    own = job.data / "preference" / "validation.parquet"
    path = own if settings.path is None else Path(settings.path)
    if not path.exists():
        raise ConfigError(
            "online.canary.every_steps without pairs of a good and a bad answer: the data have no preference table with a validation "
            "split; name a file of pairs with online.canary.path"
            if settings.path is None
            else f"online.canary.path={settings.path}: is not there; give a file of rows with chosen and rejected answers"
        )
    answers = [a for a in read_answers(path, settings.pairs, renderer.tokenizer) if a.side in (CHOSEN, REJECTED)]
    if not answers:
        raise ConfigError(f"online.canary.path={path}: no row has a chosen and a rejected answer; give a file of pairs")
    return answers
