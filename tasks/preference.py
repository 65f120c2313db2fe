"""Stage preference: direct preference optimisation and its kin. Produces a checkpoint."""

from __future__ import annotations

from rlhf_core.methods.row import modules_of
from rlhf_core.settings.preference import PreferenceConfig
from tasks.runtime.contract.context import Stage, StageContext
from tasks.training import LIBRARIES, TRAINING_INPUTS, run_training, training_resources


def run(context: StageContext[PreferenceConfig]) -> None:
    """Train on every rank; the checkpoint is the artifact."""
    from rlhf_core.recipes.preference import train_preference

    run_training(train_preference, context)


STAGE = Stage(
    name="preference",
    kind="checkpoint",
    config=PreferenceConfig,
    inputs=TRAINING_INPUTS,
    role="policy",
    run=run,
    resources=training_resources,
    libraries=LIBRARIES,
    modules=lambda config: modules_of(config.method, config.row.loss),
)
