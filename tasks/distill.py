"""Stage distill: a language model trained towards the distributions of a teacher. Produces a checkpoint."""

from __future__ import annotations

from rlhf_core.settings.supervised import DistillConfig
from tasks.runtime.contract.context import Input, Stage, StageContext
from tasks.training import LIBRARIES, TRAINING_INPUTS, run_training, training_resources


def run(context: StageContext[DistillConfig]) -> None:
    """Train on every rank; the checkpoint is the artifact."""
    from rlhf_core.recipes.distill import train_distill

    run_training(train_distill, context)


STAGE = Stage(
    name="distill",
    kind="checkpoint",
    config=DistillConfig,
    inputs={**TRAINING_INPUTS, "teacher": Input("policy")},
    role="policy",
    run=run,
    resources=training_resources,
    libraries=LIBRARIES,
)
