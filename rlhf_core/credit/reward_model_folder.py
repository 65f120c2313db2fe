"""Which scorer the folder of a reward model is: of whole responses, or of segments where it was trained on these."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_processing.errors import ConfigError
from rlhf_core.credit.reading import read_reading
from rlhf_core.credit.segment_reward_model import SegmentScorer, SpreadSegments
from rlhf_core.rewards.base import Scorer
from rlhf_core.rewards.reward_model import RewardModelScorer, loading
from rlhf_core.settings.credit import SegmentCredit
from rlhf_core.settings.rewards.models import RewardModelReward

if TYPE_CHECKING:
    from rlhf_core.rewards.build import Around


def reward_model_scorer(model: Path, policy_model: Path, **loading: Any) -> RewardModelScorer:
    """The scorer of `model`, one number a response."""
    reading = read_reading(model)
    if reading is None:
        return RewardModelScorer(model, policy_model, **loading)
    return SegmentScorer(model, policy_model, reading=reading, **loading)


def build(source: RewardModelReward, around: Around) -> Scorer:
    """From settings; with a run's credit of segments it rewards tokens.

    Raises `ConfigError` for a reward model that reads whole responses then, and for one without a fit that is needed.
    """
    model, settings = around.scorer(source, source.input), around.credit
    if not isinstance(settings, SegmentCredit):
        return reward_model_scorer(model, around.policy_model, **loading(around))
    reading = read_reading(model)
    if reading is None:
        raise ConfigError(
            f"credit 'segment': the reward model in input '{source.input}' gives one number a response and none a segment; train it with "
            "reward_model.granularity 'segment' (the entry that makes it), or leave credit out"
        )
    scorer = SegmentScorer(model, around.policy_model, reading=reading, **loading(around))
    return SpreadSegments(scorer, reading, settings, model)
