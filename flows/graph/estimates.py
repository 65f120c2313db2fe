"""Rough figures for `plan` and for deciding what fits side by side: memory and time of a stage, before it runs.

Simple on purpose: they are proportional to parameters and tokens, with constants measured on CPU cores. Time is left open
where GPUs are asked for, and an earlier run's measured time replaces the formula.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from data_processing.config import DataConfig
from evaluation.config import CompareConfig, EvaluateConfig
from flows.graph.nodes import Node
from flows.settings.config import PipelineConfig
from rlhf_core.models.packaged import parameters_of_named
from rlhf_core.models.weight_files import parameters_in
from rlhf_core.settings.online import OnlineConfig
from rlhf_core.settings.supervised import SftConfig
from rlhf_core.settings.training import EngineSettings, TrainingConfig
from rlhf_core.settings.vr_cli import VrCliBaselineConfig

_PROCESS_GIB = 1.0  # an interpreter with torch and friends
_START_S = 15.0  # to start one and load a model
_FLOPS = {"bf16": 1.3e11, "fp32": 0.5e11}  # a second on one core: measured on a 135M model's training step
_SAMPLED_PER_S = 6e10  # parameters x tokens a second, batched generation on one core: 450 tokens/s at 135M
_TOKENS_A_ROW = 256  # what a row is taken to have where nothing is known
_ACTIVATION_BYTES = (
    250  # a token and a square root of a parameter: attention, MLP and their gradients; 1.4 GiB measured at 135M, 1,024 tokens
)
_TRAINED_BYTES = 16  # fp32 weights, gradients and two moments of each trained parameter


@dataclass(frozen=True)
class Estimate:
    """Peak memory of a stage's processes together, and how long it works; None where nothing is known."""

    memory_gib: float
    seconds: float | None


def parameters_of(path: str) -> int | None:
    """Parameters of a model given by name, or of a folder with safetensors; None where they cannot be told without loading.

    Raises `ConfigError` for weights that are missing or damaged.
    """
    folder = Path(path).expanduser()
    return parameters_in(folder) if folder.is_dir() else parameters_of_named(path)


def estimate(node: Node, config: PipelineConfig, parameters: int | None) -> Estimate:
    """Memory and time of a node under its settings, for a model of so many `parameters`."""
    settings = node.settings
    if parameters is None or isinstance(settings, (DataConfig, CompareConfig)):
        return Estimate(_PROCESS_GIB, 10.0 if parameters is not None else None)
    if isinstance(settings, OnlineConfig):
        return _online(settings, parameters)
    if isinstance(settings, TrainingConfig):
        return _training(settings, _steps(settings, config.data) * _rows_a_step(settings), parameters)
    if isinstance(settings, EvaluateConfig):
        return _evaluation(settings, "reward_model" in node.inputs, parameters)
    if isinstance(settings, VrCliBaselineConfig):
        return _baseline(settings, config.data, parameters)
    return Estimate(_PROCESS_GIB + parameters * 8 / 2**30, _START_S)


def _training(settings: TrainingConfig, rows: float, parameters: int) -> Estimate:
    tokens = rows * min(settings.max_length_tokens, _TOKENS_A_ROW)
    memory = settings.engine.world_size * (_PROCESS_GIB + _training_gib(settings, parameters))
    return Estimate(memory, _cpu_only(settings.engine, _START_S + 6 * parameters * tokens / _FLOPS[settings.engine.precision]))


def _training_gib(settings: TrainingConfig, parameters: int) -> float:
    compute_bytes = 2 if settings.engine.precision == "bf16" else 4
    trained = 0.05 * parameters if settings.lora.rank else parameters
    weights = parameters * compute_bytes + trained * _TRAINED_BYTES / (
        settings.engine.world_size if settings.engine.zero_stage else 1
    )
    activations = settings.engine.micro_batch_tokens * math.sqrt(parameters) * _ACTIVATION_BYTES * compute_bytes / 4
    return (weights + activations) / 2**30


def _online(settings: OnlineConfig, parameters: int) -> Estimate:
    trainers = 1 + len({"critic", "proposal"} & {*settings.row.roles})
    reference = settings.uses_kl and settings.lora.rank == 0
    # A reward model of segments has the language model beside it that tells them.
    scorers = sum(source.computes for source in settings.rewards) + int(settings.credit.kind == "segment")
    frozen = 1 + int(reference) + scorers  # the sampler, the reference, the scorers
    memory = trainers * (_PROCESS_GIB + _training_gib(settings, parameters)) + frozen * (_PROCESS_GIB + parameters * 4 / 2**30)
    sets = 1 + settings.repulse.proposal_updates * settings.has_proposal
    samples = settings.steps * settings.prompts_per_step * settings.samples_per_prompt * sets
    response_tokens = samples * settings.rollout.max_new_tokens
    all_tokens = samples * min(settings.max_length_tokens, _TOKENS_A_ROW + settings.rollout.max_new_tokens)
    passes = trainers * settings.updates_per_step * 6 + frozen * 2
    seconds = parameters * (response_tokens / _SAMPLED_PER_S + passes * all_tokens / _FLOPS[settings.engine.precision])
    return Estimate(memory + settings.rollout.kv_cache_mib / 1024, _cpu_only(settings.engine, 3 * _START_S + seconds))


def _evaluation(settings: EvaluateConfig, scores: bool, parameters: int) -> Estimate:
    answers = (settings.max_prompts or 1000) * (settings.samples_per_prompt + settings.greedy)
    scoring = 2 * (1 + int("kl" in settings.metrics) + int(scores) + int("improvement" in settings.metrics))
    per_token = 1 / _SAMPLED_PER_S + scoring / _FLOPS[settings.precision]
    seconds = 2 * _START_S + parameters * answers * settings.max_new_tokens * per_token
    return Estimate(2 * _PROCESS_GIB + 4 * parameters * 4 / 2**30, None if settings.gpus else seconds)


def _baseline(settings: VrCliBaselineConfig, data: DataConfig, parameters: int) -> Estimate:
    task = data.procedures
    rows = sum((task.prompt_rows, task.validation_rows, task.test_rows)) if task else None
    flops = 2 * parameters * _TOKENS_A_ROW * (rows or 0)
    seconds = None if settings.gpus or rows is None else _START_S + flops / _FLOPS[settings.precision]
    return Estimate(_PROCESS_GIB + parameters * 4 / 2**30, seconds)


def _steps(settings: TrainingConfig, data: DataConfig) -> float:
    steps: int | None = getattr(settings, "max_steps", None)
    if steps is not None or data.procedures is None:
        return float(steps or 100)
    rows = data.procedures.sft_rows if isinstance(settings, SftConfig) else data.procedures.preference_pairs
    return rows * float(getattr(settings, "epochs", 1.0)) / float(getattr(settings, "batch_size", 1))


def _rows_a_step(settings: TrainingConfig) -> float:
    """Sequences through the model a step: pairs have two, and the preference loss asks the reference once more."""
    passes = {"SftConfig": 1.0, "DistillConfig": 2.0, "RewardModelConfig": 2.0, "PreferenceConfig": 2.7}
    return float(getattr(settings, "batch_size", 1)) * passes[type(settings).__name__]


def _cpu_only(engine: EngineSettings, seconds: float) -> float | None:
    return None if engine.gpus_per_rank else seconds / engine.world_size
