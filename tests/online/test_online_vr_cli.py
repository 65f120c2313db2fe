"""GRPO towards plans: a policy learns the word that makes the completion likelier, and the evaluation of its answers tells so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from data_processing.errors import ConfigError
from data_processing.schemas import read_table, to_table, write_table
from evaluation.config import EvaluateConfig
from evaluation.evaluate import evaluate
from evaluation.job import EvaluationJob
from rlhf_core.batching.templates import Renderer
from rlhf_core.credit.vr_cli.completions import told
from rlhf_core.events import EventLog
from rlhf_core.models.load import load_tokenizer
from rlhf_core.recipes.online.run import run_online
from rlhf_core.recipes.vr_cli_baseline import BaselineJob, compute_baseline
from rlhf_core.settings.vr_cli import VrCliBaselineConfig
from tests.online.runs import events, metric, online_job, rollouts
from tests.tiny_models import tiny_model

HOW = VrCliBaselineConfig(max_length_tokens=256)
WORDS = ("yes", "no")
GOLD = "yes"
QUESTIONS = [f"what is {i}?" for i in range(8)]


def asked(question: str, *, plans: bool) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"{question} plan it." if plans else question}]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Repeats the word of a plan; without one, and where it is to plan, it says either word as often."""
    folder = tiny_model(tmp_path_factory.mktemp("model"))
    renderer = Renderer(load_tokenizer(folder))
    rows = []
    for question in QUESTIONS:
        for word in WORDS:
            answer = [{"role": "assistant", "content": word}]
            rows.append(renderer.prompt_and_response(asked(question, plans=True), answer))
            rows.append(renderer.prompt_and_response(asked(question, plans=False), answer))
            rows += [renderer.prompt_and_response(told(asked(question, plans=False), word, HOW), answer)] * 2
    lm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    longest = max(len(row.ids) for row in rows)
    ids = torch.tensor([row.ids + [0] * (longest - len(row.ids)) for row in rows])
    labels = torch.tensor(
        [
            [i if learnt else -100 for i, learnt in zip(row.ids, row.is_target, strict=True)] + [-100] * (longest - len(row.ids))
            for row in rows
        ]
    )
    mask = torch.tensor([[1] * len(row.ids) + [0] * (longest - len(row.ids)) for row in rows])
    optimizer = torch.optim.AdamW(lm.parameters(), lr=3e-3)
    for _ in range(120):
        optimizer.zero_grad()
        lm(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        optimizer.step()
    lm.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for split in ("train", "test"):
        rows = [
            {
                "id": f"{split}-{i}",
                "prompt": asked(question, plans=True),
                "label": GOLD,
                "source": "s",
                "extra": f'{{"asked": [{{"role": "user", "content": "{question}"}}]}}',
            }
            for i, question in enumerate(QUESTIONS)
        ]
        write_table("prompts", to_table("prompts", rows), folder / "prompts" / f"{split}.parquet")
    return folder


@pytest.fixture(scope="module")
def baseline(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("baseline")
    (folder / "output").mkdir()
    log = EventLog(folder / "events.jsonl")
    compute_baseline(BaselineJob(HOW, model, data, folder / "output", folder / "resume", log))
    return folder / "output"


def planning(folder: Path, model: Path, data: Path, baseline: Path | None, **settings: Any) -> Any:
    given = {"method": "grpo", "samples_per_prompt": 8, "prompts_per_step": 4, "updates_per_step": 1, "max_length_tokens": 128}
    job = online_job(folder, model, data, **{**given, "rewards": [{"kind": "vr_cli", "mode": "raw"}], **settings})
    return replace(job, scorers={"generator": model} | ({} if baseline is None else {"baseline": baseline}))


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_plans_come_to_say_what_helps(model: Path, data: Path, baseline: Path, tmp_path: Path) -> None:
    settings = {"steps": 8, "optimizer__learning_rate": 1e-3, "rollout__max_new_tokens": 4}
    run = planning(tmp_path, model, data, baseline, **settings)
    run_online(run)
    improvement = metric(run, "reward/vr_cli/improvement/mean")
    assert improvement[0] < 0 < improvement[-1]
    assert improvement == pytest.approx(metric(run, "reward/mean"), abs=1e-5)
    told = [event["message"] for event in events(run, "warning")]
    assert sum("none of 32 responses has one of the markers" in line for line in told) == 1
    tokenizer = load_tokenizer(model)
    rows = rollouts(run).to_pylist()
    said = [tokenizer.decode(row["response_ids"], skip_special_tokens=True) for row in rows]
    steps = sorted({row["step"] for row in rows})
    first, last = (
        fmean(GOLD in text for text, row in zip(said, rows, strict=True) if row["step"] == step) for step in (steps[0], steps[-1])
    )
    assert first < 0.8 < last


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_a_run_without_its_baseline_is_refused(model: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'baseline' is asked"):
        run_online(planning(tmp_path, model, data, None))


@pytest.mark.seconds
def test_answers_are_measured_as_plans(model: Path, data: Path, baseline: Path, tmp_path: Path) -> None:
    config = EvaluateConfig(
        metrics=["improvement", "length"],
        max_new_tokens=4,
        engine="hf",
        dtype="fp32",
        bootstrap_resamples=100,
        samples_per_prompt=4,
    )
    log = EventLog(tmp_path / "events.jsonl")
    job = EvaluationJob(
        config, model, "m", model, data, None, tmp_path / "out", seed=3, events=log, generator=model, baseline=baseline
    )
    (tmp_path / "out").mkdir()
    evaluate(job)
    predictions = {
        row["id"]: row["response"] for row in read_table("predictions", tmp_path / "out" / "predictions.parquet").to_pylist()
    }
    rows = read_table("scores", tmp_path / "out" / "scores.parquet").to_pylist()
    found = {
        name: {row["prediction_id"]: row["value"] for row in rows if row["metric"] == name}
        for name in {r["metric"] for r in rows}
    }
    assert found.keys() >= {
        "improvement",
        "improvement.above_zero",
        "improvement.reward",
        "improvement.marked",
        "improvement.copied",
    }
    for row_id, percent in found["improvement"].items():
        assert found["improvement.above_zero"][row_id] == float(percent > 0)
        if predictions[row_id].strip() in WORDS:
            assert (percent > 0) == (predictions[row_id].strip() == GOLD)
