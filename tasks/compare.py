"""The compare stage: evaluated models against each other, the verdict, and what the report shows of it."""

from __future__ import annotations

from evaluation.config import CompareConfig
from tasks.runtime.contract.context import ANY, Input, Stage, StageContext


def run(context: StageContext[CompareConfig]) -> None:
    """Compare the input evaluations; see evaluation/comparison_artifact.py."""
    from evaluation.comparison_artifact import write_comparison

    evaluations = {model: context.inputs[model] for model in context.config.models}
    write_comparison(evaluations, context.config, context.output, context.seed, context.events)


STAGE = Stage(
    name="compare",
    kind="comparison",
    config=CompareConfig,
    inputs={ANY: Input("evaluation")},
    run=run,
    libraries=("numpy",),
)
