"""The reward worker of online training, a plain class that `Group` runs as a Ray actor.

It imports no torch: only a reward model needs that, and a process without one starts quicker and stays small.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf_core.cluster.memory import Measured
from rlhf_core.rewards.base import ScoredResponse
from rlhf_core.rewards.build import build_reward
from rlhf_core.rewards.compose import ComposedReward, Retries, Rewards
from rlhf_core.settings.rollout import RewardSource
from rlhf_core.settings.training import EngineSettings


@dataclass(frozen=True, slots=True)
class RewardSetup:
    """What the reward worker is started with; a call of a Python function may take `limit_s` seconds, and there are `rounds` of them."""

    sources: list[RewardSource]
    policy_model: Path
    reward_model: Path | None
    engine: EngineSettings
    retries: Retries
    trust_remote_code: bool
    limit_s: float | None = None
    rounds: int = 1


class RewardWorker(Measured):
    """All sources of reward in one process."""

    reward: ComposedReward

    def setup(self, setup: RewardSetup) -> tuple[str, ...]:
        """Load every source; returns lines for people. Raises `ConfigError` for a source that cannot be loaded."""
        self.reward = build_reward(
            setup.sources,
            policy_model=setup.policy_model,
            reward_model=setup.reward_model,
            engine=setup.engine,
            retries=setup.retries,
            trust_remote_code=setup.trust_remote_code,
            limit_s=setup.limit_s,
            rounds=setup.rounds,
        )
        return self.reward.notes

    def restore(self, running: Mapping[str, tuple[int, float, float]]) -> None:
        """Go on with the statistics of earlier rounds."""
        self.reward.restore(running)

    def score(self, responses: Sequence[ScoredResponse]) -> Rewards:
        """The weighted sum and what it is made of; raises what `ComposedReward.score` raises."""
        return self.reward.score(responses)

    def judge(self, responses: Sequence[ScoredResponse]) -> Rewards:
        """The same of answers that nobody learns from: the sum of what the sources gave, on no scale, and no statistic sees them."""
        return self.reward.score(responses, is_learnt=False)
