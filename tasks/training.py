"""What the stages of offline training share: from a stage's context to ranks that run one recipe."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from rlhf_core.cluster.resources import Resources, ranks
from rlhf_core.recipes.job import TrainingJob
from rlhf_core.recipes.stop import stop_file_on_sigterm
from rlhf_core.settings.training import TrainingConfig
from tasks.runtime.contract.context import Input, StageContext

ConfigT = TypeVar("ConfigT", bound=TrainingConfig)

# Distributions whose versions can change what is trained.
LIBRARIES = ("torch", "transformers", "deepspeed", "peft", "pyarrow")
TRAINING_INPUTS = {"model": Input("policy", default="base"), "data": Input("data", default="data")}


def training_resources(config: TrainingConfig) -> Resources:
    """What the ranks of a training stage reserve."""
    engine = config.engine
    settings = "engine.world_size and engine.gpus_per_rank"
    return ranks(engine.world_size, threads=engine.threads_per_rank, gpus=engine.gpus_per_rank, settings=settings)


def run_training(recipe: Callable[[TrainingJob[ConfigT]], None], context: StageContext[ConfigT]) -> None:
    """Run `recipe` on every rank that the settings ask for; SIGTERM saves a checkpoint and ends in `PreemptedError`."""
    from rlhf_core.cluster.launch import launch

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
        teacher=context.inputs.get("teacher"),
    )
    with stop_file_on_sigterm(context.resume):
        launch(
            recipe,
            job,
            resources=training_resources(context.config),
            threads=context.config.engine.threads_per_rank,
            waiting=context.waiting,
        )
