"""Stage reward_model: a scalar reward head trained on preference pairs. Produces a checkpoint."""

from __future__ import annotations

from rlhf_core.settings.supervised import RewardModelConfig
from tasks.runtime.contract.context import Stage, StageContext
from tasks.training import LIBRARIES, TRAINING_INPUTS, run_training, training_resources


def run(context: StageContext[RewardModelConfig]) -> None:
    """Train on every rank; the checkpoint is the artifact."""
    from rlhf_core.recipes.reward_model import train_reward_model

    run_training(train_reward_model, context)


STAGE = Stage(
    name="reward_model",
    kind="checkpoint",
    config=RewardModelConfig,
    inputs=TRAINING_INPUTS,
    role="scorer",
    run=run,
    resources=training_resources,
    libraries=(*LIBRARIES, "scikit-learn"),
)
