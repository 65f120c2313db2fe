"""Online runs of the tests: a tiny model, a handful of prompts, settings small enough for seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from data_processing.schemas import read_table, to_table, write_table
from rlhf_core.events import EventLog
from rlhf_core.recipes.online.job import OnlineJob
from rlhf_core.settings.online import OnlineConfig

REWARD = "tests.online.reward_functions"


def prompts_folder(folder: Path, count: int = 6, label: str | None = None) -> Path:
    """A prepared data folder with `count` training prompts."""
    questions = [f"what is {i} {'and ' * (i % 3)}the answer?" for i in range(count)]
    rows = [
        {"id": f"p{i}", "prompt": [{"role": "user", "content": q}], "label": label, "source": "test"}
        for i, q in enumerate(questions)
    ]
    write_table("prompts", to_table("prompts", rows), folder / "prompts" / "train.parquet")
    return folder


def online_job(folder: Path, model: Path, data: Path, **settings: Any) -> OnlineJob:
    """A run below `folder`; `settings` replace those here, dotted names reach into sections."""
    values: dict[str, Any] = {
        "steps": 2,
        "prompts_per_step": 8,
        "samples_per_prompt": 8,
        "updates_per_step": 2,
        "kl_coef": 0.0,
        "rewards": [{"kind": "python", "function": f"{REWARD}:vowels"}],
        "lora": {"rank": 0},
        "optimizer": {"learning_rate": 1e-2, "schedule": "constant", "warmup_fraction": 0.0},
        "engine": {"dtype": "fp32", "micro_batch_tokens": 256, "zero_stage": 1},
        "rollout": {"engine": "hf", "max_new_tokens": 8},
        "max_length_tokens": 64,
        "gates": {"max_truncated_fraction": 1.0},
        "critic": {"learning_rate": 1e-2},
        "checkpoint_every_steps": 0,
        "stall_after_s": 240.0,
    }
    for name, value in settings.items():
        section, _, key = name.rpartition("__")
        (values[section] if section else values)[key] = value
    output, resume = folder / "output", folder / "resume"
    output.mkdir(parents=True, exist_ok=True)
    resume.mkdir(parents=True, exist_ok=True)
    return OnlineJob(
        config=OnlineConfig.model_validate(values),
        model=model,
        data=data,
        output=output,
        resume=resume,
        seed=11,
        events=EventLog(folder / "events.jsonl"),
    )


def events(job: OnlineJob, kind: str) -> list[dict[str, Any]]:
    """The run's events of one type; of metrics those of its rounds, which count from 1."""
    lines = [json.loads(line) for line in job.events.path.read_text().splitlines()]
    return [line for line in lines if line["type"] == kind and line.get("step") != 0]


def metric(job: OnlineJob, name: str) -> list[float]:
    """One metric, a number a round."""
    return [event["values"][name] for event in events(job, "metrics")]


def rollouts(job: OnlineJob) -> pa.Table:
    """All rounds of the artifact, checked against the schema."""
    files = sorted((job.output / "rollouts").glob("step-*.parquet"))
    return pa.concat_tables([read_table("rollouts", path) for path in files])


def final_weights(job: OnlineJob) -> dict[str, torch.Tensor]:
    """The trained weights in the artifact, as DeepSpeed puts them together."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    state: dict[str, torch.Tensor] = get_fp32_state_dict_from_zero_checkpoint(str(job.output / "zero"))
    return state
