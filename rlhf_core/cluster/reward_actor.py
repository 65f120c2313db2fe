"""The reward worker of online training, a plain class that `Group` runs as a Ray actor.

It imports no torch: only a reward model needs that, and a process without one starts quicker and stays small.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlhf_core.cluster.memory import Measured
from rlhf_core.rewards.base import ScoredResponse
from rlhf_core.rewards.build import Around, build_reward
from rlhf_core.rewards.compose import ComposedReward, Rewards
from rlhf_core.settings.rewards.base import RewardSettings


@dataclass(frozen=True, slots=True)
class RewardSetup:
    """What the reward worker is started with: the sources, what they are built in, and how many rounds there are."""

    sources: Sequence[RewardSettings]
    around: Around
    rounds: int = 1


class RewardWorker(Measured):
    """All sources of reward in one process."""

    reward: ComposedReward

    def setup(self, setup: RewardSetup) -> tuple[str, ...]:
        """Load every source; returns lines for people. Raises `ConfigError` for a source that cannot be loaded."""
        self.reward = build_reward(setup.sources, setup.around, rounds=setup.rounds)
        return self.reward.notes

    def restore(self, running: Mapping[str, tuple[int, float, float]]) -> None:
        """Go on with the statistics of earlier rounds."""
        self.reward.restore(running)

    def waits(self) -> bool:
        """Whether it pays to `begin` with responses as soon as they end."""
        return self.reward.waits

    def begin(self, responses: Sequence[ScoredResponse]) -> None:
        """Have the sources that wait work on these, for which `score` will be called; raises nothing."""
        self.reward.begin(responses)

    def score(self, responses: Sequence[ScoredResponse]) -> Rewards:
        """The weighted sum and what it is made of; raises what `ComposedReward.score` raises."""
        return self.reward.score(responses)

    def judge(self, responses: Sequence[ScoredResponse]) -> Rewards:
        """The same of answers that nobody learns from: the sum of what the sources gave, on no scale, and no statistic sees them."""
        return self.reward.score(responses, is_learnt=False)

    def compare(self, responses: Sequence[ScoredResponse]) -> Rewards:
        """The same of responses that nobody learns from, on the scale of those that were scored last; no statistic sees them."""
        return self.reward.score(responses, is_learnt=False, keeps_scale=True)
