"""What the sft, reward_model and preference stages share: from a stage's context to ranks that run one recipe."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from rlhf_core.config import TrainingConfig
from rlhf_core.recipes.job import TrainingJob
from rlhf_core.recipes.stop import stop_file_on_sigterm
from tasks.runtime.contract.context import Input, StageContext

ConfigT = TypeVar("ConfigT", bound=TrainingConfig)

# Distributions whose versions can change what is trained.
LIBRARIES = ("torch", "transformers", "deepspeed", "peft", "pyarrow")
TRAINING_INPUTS = {"model": Input("policy", default="base"), "data": Input("data", default="data")}

# Ranks that cannot be placed by then wait for room that is not coming.
PLACEMENT_TIMEOUT_S = 120.0


def run_training(recipe: Callable[[TrainingJob[ConfigT]], None], context: StageContext[ConfigT]) -> None:
    """Run `recipe` on every rank that the settings ask for; SIGTERM saves a checkpoint and ends in `PreemptedError`."""
    from rlhf_core.cluster.launch import launch

    engine = context.config.engine
    job = TrainingJob(
        config=context.config,
        model=context.inputs["model"],
        data=context.inputs["data"],
        output=context.output,
        resume=context.resume,
        seed=context.seed,
        events=context.events,
        # The base_model stage refuses folders with code unless it is trusted, so what is in the store has been allowed.
        trust_remote_code=True,
        model_sha256=context.refs["model"].sha256 if "model" in context.refs else None,
    )
    with stop_file_on_sigterm(context.resume):
        launch(
            recipe,
            job,
            world_size=engine.world_size,
            gpus_per_rank=engine.gpus_per_rank,
            threads=engine.threads_per_rank,
            timeout_s=PLACEMENT_TIMEOUT_S,
        )
