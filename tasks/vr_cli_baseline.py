"""Stage vr_cli_baseline: how likely a frozen model finds the completion of each prompt without a plan. Produces a baseline."""

from __future__ import annotations

from rlhf_core.cluster.resources import Resources, ranks
from rlhf_core.settings.vr_cli import VrCliBaselineConfig
from tasks.runtime.contract.context import Stage, StageContext
from tasks.training import LIBRARIES, TRAINING_INPUTS


def resources(config: VrCliBaselineConfig) -> Resources:
    """One process, and its GPU."""
    return ranks(1, threads=config.threads, gpus=config.gpus, settings="gpus")


def run(context: StageContext[VrCliBaselineConfig]) -> None:
    """Score every completion once; see rlhf_core/recipes/vr_cli_baseline.py."""
    from rlhf_core.cluster.launch import launch
    from rlhf_core.recipes.stop import stop_file_on_sigterm
    from rlhf_core.recipes.vr_cli_baseline import BaselineJob, compute_baseline

    job = BaselineJob(
        config=context.config,
        generator=context.inputs["model"],
        data=context.inputs["data"],
        output=context.output,
        resume=context.resume,
        events=context.events,
    )
    with stop_file_on_sigterm(context.resume):
        facts = launch(
            compute_baseline,
            job,
            resources=resources(context.config),
            threads=context.config.threads,
            waiting=context.waiting,
        )
    context.events.summary(facts)


STAGE = Stage(
    name="vr_cli_baseline",
    kind="baseline",
    config=VrCliBaselineConfig,
    inputs=TRAINING_INPUTS,
    run=run,
    resources=resources,
    libraries=LIBRARIES,
)
