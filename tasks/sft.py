"""Stage sft: supervised fine-tuning of a language model. Produces a checkpoint."""

from __future__ import annotations

from rlhf_core.settings.supervised import SftConfig
from tasks.runtime.contract.context import Stage, StageContext
from tasks.training import LIBRARIES, TRAINING_INPUTS, run_training, training_resources


def run(context: StageContext[SftConfig]) -> None:
    """Train on every rank; the checkpoint is the artifact."""
    from rlhf_core.recipes.sft import train_sft

    run_training(train_sft, context)


STAGE = Stage(
    name="sft",
    kind="checkpoint",
    config=SftConfig,
    inputs=TRAINING_INPUTS,
    role="policy",
    run=run,
    resources=training_resources,
    libraries=LIBRARIES,
)
