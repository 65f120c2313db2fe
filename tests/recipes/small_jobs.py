"""Small tables, small settings and readers of what a recipe left behind, for the tests of the recipes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from data_processing.schemas import to_table, write_table
from data_processing.turns import pack_turns
from rlhf_core.engine.distributed import rank
from rlhf_core.events import EventLog
from rlhf_core.recipes.job import TrainingJob
from rlhf_core.recipes.preference import train_preference
from rlhf_core.settings.preference import PreferenceConfig
from rlhf_core.settings.supervised import DistillConfig, RewardModelConfig, SftConfig
from rlhf_core.settings.training import EngineSettings, LoraSettings, OptimizerSettings, TrainingConfig

ANSWERS = ["the answer is yes", "no", "escalate to a manager", "first read the policy, then apply the rules in order"]
FULL = LoraSettings(rank=0)

Settings = dict[str, Any]


def write_data(folder: Path, train_rows: int = 10, validation_rows: int = 5) -> Path:
    """A data artifact with sft and preference tables; answers have different lengths, every third pair a margin."""
    for split, first, n_rows in (("train", 0, train_rows), ("validation", 1000, validation_rows)):
        if n_rows:
            numbers = range(first, first + n_rows)
            write_table("sft", to_table("sft", map(sft_row, numbers)), folder / "sft" / f"{split}.parquet")
            pairs = to_table("preference", map(preference_row, numbers))
            write_table("preference", pairs, folder / "preference" / f"{split}.parquet")
    return folder


def sft_row(number: int) -> Settings:
    """One question and answer."""
    return {"id": f"row{number}", "messages": [_question(number), *_answer(ANSWERS[number % 4])]}


def weighted_row(number: int) -> Settings:
    """Two questions and answers that do not count the same; now and then the first is not learnt."""
    first, second = sft_row(number)["messages"], sft_row(number + 1)["messages"]
    first[1]["weight"], second[1]["weight"] = (0, 0.25, 1)[number % 3], 2.5
    return {"id": f"row{number}", "messages": [*first, *second]}


def write_sft(folder: Path, rows: Sequence[Settings]) -> Path:
    """A data artifact with these rows to train on."""
    rows = [{**row, "messages": [dict(message) for message in row["messages"]]} for row in rows]
    for row in rows:
        pack_turns(row)
    write_table("sft", to_table("sft", rows), folder / "sft" / "train.parquet")
    return folder


def step_row(number: int) -> Settings:
    """One to four steps; those that say approve are right."""
    said = [f"{ANSWERS[(number + i) % 4]} {'approve' if (number + i) % 3 else 'reject'}" for i in range(1 + number % 4)]
    return {
        "id": f"row{number}",
        "prompt": [_question(number)],
        "steps": [turn for step in said for turn in _answer(step)],
        "labels": ["approve" in step for step in said],
    }


def preference_row(number: int) -> Settings:
    """One pair; what is chosen can be told from the words alone."""
    return {
        "id": f"row{number}",
        "prompt": [_question(number)],
        "chosen": _answer(ANSWERS[number % 4] + " approve"),
        "rejected": _answer(ANSWERS[(number + 1) % 4] + " reject"),
        "margin": 0.5 if number % 3 == 0 else None,
        "detail": None,
    }


def _question(number: int) -> dict[str, str]:
    return {"role": "user", "content": f"what is the answer to {number}?"}


def _answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def engine(**changes: Any) -> EngineSettings:
    """fp32, so that equal means equal; micro-batches that hold a few rows."""
    values: Settings = {"dtype": "fp32", "micro_batch_tokens": 128}
    return EngineSettings(**values | changes)


def _common(learning_rate: float, changes: Settings) -> Settings:
    optimizer = OptimizerSettings(learning_rate=learning_rate, schedule="constant", warmup_fraction=0.0)
    defaults = {"max_length_tokens": 200, "batch_size": 4, "max_steps": 6, "engine": engine(), "optimizer": optimizer}
    return defaults | {"lora": LoraSettings(rank=4, alpha=8)} | changes


def sft_config(learning_rate: float = 1e-2, **changes: Any) -> SftConfig:
    """A short run; `changes` replace fields."""
    return SftConfig(**_common(learning_rate, changes))


def distill_config(learning_rate: float = 1e-2, **changes: Any) -> DistillConfig:
    """A short run; `changes` replace fields."""
    return DistillConfig(**_common(learning_rate, changes))


def reward_config(learning_rate: float = 1e-2, **changes: Any) -> RewardModelConfig:
    """A short run; `changes` replace fields."""
    return RewardModelConfig(**_common(learning_rate, changes))


def preference_config(learning_rate: float = 1e-2, **changes: Any) -> PreferenceConfig:
    """A short run; `changes` replace fields."""
    return PreferenceConfig(**_common(learning_rate, changes))


def job(config: TrainingConfig, model: Path, data: Path, work: Path, seed: int = 3) -> TrainingJob[Any]:
    """A job whose output, resume folder and events lie below `work`."""
    output = work / "output"
    output.mkdir(parents=True, exist_ok=True)
    (work / "resume").mkdir(exist_ok=True)
    return TrainingJob(config, model, data, output, work / "resume", seed, EventLog(work / "events.jsonl"))


def train_each(plan: Sequence[tuple[Callable[[TrainingJob[Any]], None], TrainingJob[Any]]]) -> None:
    """Run recipes one after the other in this process; here, so that the ranks' processes can import it."""
    for train, run in plan:
        train(run)


def train_from_half_the_reference(earlier: Path, run: TrainingJob[Any]) -> None:
    """Train as after an attempt that scored every other pair and was ended."""
    [path] = earlier.glob("reference_logps-*.safetensors")
    logps = load_file(path)["logps"]
    logps[::2] = torch.nan
    if rank() == 0:
        save_file({"logps": logps}, run.resume / path.name)
    train_preference(run)


def events(run: TrainingJob[Any], kind: str) -> list[Settings]:
    """The events of one type, oldest first."""
    lines = run.events.path.read_text(encoding="utf-8").splitlines()
    return [event for line in lines if (event := json.loads(line))["type"] == kind]


def curve(run: TrainingJob[Any], name: str) -> list[float]:
    """One metric over the steps that have it."""
    return [event["values"][name] for event in events(run, "metrics") if name in event["values"]]


def summary(run: TrainingJob[Any]) -> Settings:
    """The facts reported at the end."""
    [event] = events(run, "summary")
    values: Settings = event["values"]
    return values


def same_weights(one: TrainingJob[Any], other: TrainingJob[Any]) -> bool:
    """Whether two runs ended in the same weights, to the bit."""
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def weights(run: TrainingJob[Any]) -> dict[str, Tensor]:
    """The trained weights in the checkpoint artifact, fp32."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    state: dict[str, Tensor] = get_fp32_state_dict_from_zero_checkpoint(str(run.output / "zero"), tag="weights")
    return state
