"""Stage convert: a training checkpoint becomes a model folder that every later stage, and everybody else, can load."""

from __future__ import annotations

from rlhf_core.settings.models import ConvertConfig
from tasks.runtime.contract.context import Input, Stage, StageContext


def run(context: StageContext[ConvertConfig]) -> None:
    """Convert the checkpoint against the model its training started from; the model card carries the lineage."""
    from rlhf_core.engine.convert import STEPS, convert_checkpoint

    def tell(step: str) -> None:
        context.events.progress(STEPS.index(step), len(STEPS), step)

    lineage = {name: ref.model_dump(exclude={"uri"}) for name, ref in context.refs.items()}
    facts = convert_checkpoint(
        context.inputs["checkpoint"], context.inputs["base"], context.output, context.config, lineage, tell=tell
    )
    context.events.summary(facts)
    context.events.progress(len(STEPS), len(STEPS), "model folder written and checked against the model in memory")


STAGE = Stage(
    name="convert",
    kind="model",
    config=ConvertConfig,
    inputs={"checkpoint": Input("checkpoint"), "base": Input("policy")},
    run=run,
    libraries=("torch", "transformers", "deepspeed", "peft"),
)
