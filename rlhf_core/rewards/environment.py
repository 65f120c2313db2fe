"""What an environment gave for each turn, as a reward at the token that ended it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from data_processing.errors import ConfigError
from rlhf_core.rewards.base import ScoredResponse, Scores
from rlhf_core.settings.rewards.functions import EnvironmentReward

if TYPE_CHECKING:
    from rlhf_core.rewards.build import Around


class EnvironmentScorer:
    """A response's own reward is 0, and its turns earn theirs; with `of_turns` "sum" or "last" it is that of the turns instead.

    A conversation that the environment failed in is NaN; one without a reward, as its first turn was cut, earned nothing.
    """

    name = "environment"

    def __init__(self, of_turns: str) -> None:
        self._of_turns = of_turns

    def score(self, responses: Sequence[ScoredResponse]) -> Scores:
        """Raises `ConfigError` for responses of a run without an environment."""
        rewards: list[float | None] = []
        tokens: list[list[float] | None] = []
        failures: list[str | None] = []
        for response in responses:
            trajectory = response.trajectory
            if trajectory is None:
                raise ConfigError(
                    "rewards: kind 'environment' without one: name its class in online.environment.path, or use another kind"
                )
            given = [reward for reward in trajectory.rewards if reward is not None]
            failures.append(trajectory.failure)
            rewards.append(math.nan if trajectory.failure else self._own(given))
            tokens.append(self._at_turns(response) if given and not trajectory.failure else None)
        return Scores(rewards, _numbers(responses), tokens if self._of_turns == "each" else (), failures)

    def _own(self, given: Sequence[float]) -> float:
        return {"each": 0.0, "sum": math.fsum(given), "last": given[-1] if given else 0.0}[self._of_turns]

    def _at_turns(self, response: ScoredResponse) -> list[float]:
        laid = [0.0] * len(response.response_ids)
        assert response.trajectory is not None
        for place, reward in zip(response.trajectory.turn_ends, response.trajectory.rewards, strict=True):
            laid[place] += reward or 0.0
        return laid


def build(source: EnvironmentReward, around: Around) -> EnvironmentScorer:
    """From settings."""
    return EnvironmentScorer(source.of_turns)


def _numbers(responses: Sequence[ScoredResponse]) -> dict[str, list[float | None]]:
    """Turns, what all of them earned, and what the environments counted."""
    trajectories = [response.trajectory for response in responses]
    names = dict.fromkeys(name for each in trajectories if each is not None for name in each.metrics)
    found: dict[str, list[float | None]] = {
        "turns": [None if each is None else float(len(each.turn_ends)) for each in trajectories],
        "earned": [None if each is None else math.fsum(r for r in each.rewards if r is not None) for each in trajectories],
    }
    return found | {name: [None if each is None else each.metrics.get(name, 0.0) for each in trajectories] for name in names}
