"""The procedures checker as a reward: the label is the policy, the reward is the checker's score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from data_processing.errors import ConfigError
from data_processing.procedures.checker import check
from rlhf_core.rewards.base import ScoredResponse
from rlhf_core.settings.rewards.functions import ProceduresReward

if TYPE_CHECKING:
    from rlhf_core.rewards.build import Around


class ProceduresScorer:
    """Score in [0, 1] of executing the answer on every combination of the policy's attributes."""

    name = "procedures"

    def score(self, responses: Sequence[ScoredResponse]) -> list[float]:
        """Raises `ConfigError` naming the prompt that carries no policy."""
        return [check(_policy(response), response.text).score for response in responses]


def build(source: ProceduresReward, around: Around) -> ProceduresScorer:
    """From settings."""
    return ProceduresScorer()


def _policy(response: ScoredResponse) -> str:
    if response.label is None:
        raise ConfigError(
            f"rewards: kind 'procedures' needs the policy as label of every prompt; prompt {response.prompt_id} has none:"
            " use prompts of the built-in task, or another reward"
        )
    return response.label
