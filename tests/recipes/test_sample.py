"""Tables from a model's own answers: which answers become rows, what a stop leaves behind, and training on them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_processing.errors import DataError, PreemptedError
from data_processing.schemas import read_table, to_table, write_table
from rlhf_core.events import EventLog
from rlhf_core.recipes import sample
from rlhf_core.recipes.prompts import Limits
from rlhf_core.recipes.sample import SampleJob, sample_table
from rlhf_core.recipes.stop import STOP_FILE_NAME
from rlhf_core.settings.own_answers import IterativeConfig, SampleConfig
from tasks import iterative
from tasks.runtime.contract.context import ArtifactRef, StageContext
from tests.online.runs import REWARD, prompts_folder
from tests.tiny_models import tiny_model

ROLLOUT = {"engine": "hf", "max_new_tokens": 6}
ENGINE = {"dtype": "fp32", "micro_batch_tokens": 256}
VOWELS = [{"kind": "python", "function": f"{REWARD}:vowels"}]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = prompts_folder(tmp_path_factory.mktemp("data"), count=40)
    row = {"id": "v0", "prompt": [{"role": "user", "content": "what is it?"}], "label": None, "source": "test"}
    write_table("prompts", to_table("prompts", [row]), folder / "prompts" / "validation.parquet")
    return folder


def sample_job(folder: Path, model: Path, data: Path, name: str = "model", **settings: Any) -> SampleJob:
    values = {"samples_per_prompt": 3, "rewards": VOWELS, "rollout": ROLLOUT, "engine": ENGINE, "max_length_tokens": 64}
    config = SampleConfig.model_validate(values | settings)
    for place in ("output", "resume"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    return SampleJob(
        settings=config,
        table=config.table,
        limits=Limits.of(config, config.rollout),
        engine=config.engine,
        stall_after_s=60.0,
        model=model,
        model_name=name,
        scorers={},
        allowed_hosts=(),
        data=data,
        output=folder / "output",
        resume=folder / "resume",
        seed=3,
        events=EventLog(folder / "events.jsonl"),
    )


def rows(job: SampleJob, split: str = "train") -> list[dict[str, Any]]:
    return read_table(job.table, job.output / job.table / f"{split}.parquet").to_pylist()


def vowels(messages: list[dict[str, str]]) -> float:
    text = messages[-1]["content"]
    return sum(c in "aeiou" for c in text) / max(1, len(text))


@pytest.fixture
def all_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model hardly ever stops by itself; here what it was cut at is where it ended."""
    drawn = sample.scored_response
    monkeypatch.setattr(sample, "scored_response", lambda *arguments: replace(drawn(*arguments), finish_reason="stop"))


@pytest.mark.usefixtures("all_end")
def test_the_best_answer_is_learnt_and_of_pairs_the_worst_is_unlearnt(model: Path, data: Path, tmp_path: Path) -> None:
    every = sample_job(tmp_path / "every", model, data, table="unpaired", min_reward=0.3)
    best = sample_job(tmp_path / "best", model, data)
    pairs = sample_job(tmp_path / "pairs", model, data, table="preference", min_margin=0.05)
    facts = {job.table: sample_table(job) for job in (every, best, pairs)}
    assert facts["sft"]["answers"] == 41 * 3
    assert (facts["sft"]["train_rows"], facts["sft"]["validation_rows"]) == (40, 1)
    answers: dict[str, list[float]] = {}
    for row in rows(every):
        assert row["desirable"] == (vowels(row["response"]) >= 0.3)
        answers.setdefault(row["id"].rpartition("-")[0], []).append(vowels(row["response"]))
    assert {row["id"]: vowels(row["messages"]) for row in rows(best)} == {name: max(own) for name, own in answers.items()}
    expected = {name: (max(own), min(own)) for name, own in answers.items() if max(own) - min(own) > 0.05}
    assert {row["id"]: (vowels(row["chosen"]), vowels(row["rejected"])) for row in rows(pairs)} == expected
    assert all(row["margin"] == pytest.approx(vowels(row["chosen"]) - vowels(row["rejected"])) for row in rows(pairs))
    assert len(expected) > 10
    rated = sample_job(tmp_path / "rated", model, data, table="prompts", min_reward=0.3)
    sample_table(rated)
    shares = {name: sum(worth >= 0.3 for worth in own) / 3 for name, own in answers.items()}
    asked = {row["id"]: row for row in read_table("prompts", data / "prompts" / "train.parquet").to_pylist()}
    for row in rows(rated):
        assert json.loads(row["extra"]) == {"pass_rate": pytest.approx(shares[row["id"]])}
        assert {**row, "extra": None} == asked[row["id"]], "the prompt itself is as it was"
    assert {row["id"] for row in rows(rated)} == shares.keys() - {"v0"}
    assert len(set(shares.values())) > 2


@pytest.mark.usefixtures("all_end")
def test_an_answer_that_is_worth_too_little_is_not_learnt(model: Path, data: Path, tmp_path: Path) -> None:
    job = sample_job(tmp_path / "some", model, data, min_reward=0.35)
    facts = sample_table(job)
    assert 0 < facts["train_rows"] < 40
    assert min(vowels(row["messages"]) for row in rows(job)) >= 0.35
    with pytest.raises(DataError, match=r"none of the 40 prompts gave a row for the table 'sft': .*min_reward; lower it"):
        sample_table(sample_job(tmp_path / "none", model, data, min_reward=2.0))
    flat = [{"kind": "python", "function": f"{REWARD}:constant"}]
    with pytest.raises(DataError, match=r"no prompt has two answers .* differ by more than min_margin"):
        sample_table(sample_job(tmp_path / "flat", model, data, table="preference", rewards=flat))


def test_a_cut_answer_is_nobodys_example(model: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"of the answers 100% were cut"):
        sample_table(sample_job(tmp_path, model, data, rollout={**ROLLOUT, "max_new_tokens": 1}))


@pytest.mark.usefixtures("all_end")
def test_another_model_is_asked_other_prompts(model: Path, data: Path, tmp_path: Path) -> None:
    jobs = [sample_job(tmp_path / name, model, data, name, max_prompts=10) for name in ("one", "other")]
    for job in jobs:
        sample_table(job)
    asked = [{row["id"] for row in rows(job)} for job in jobs]
    assert len(asked[0]) == len(asked[1]) == 10
    assert asked[0] != asked[1]


@pytest.mark.usefixtures("all_end")
def test_a_stopped_attempt_leaves_its_answers_to_the_next(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "PROMPTS_A_PART", 16)
    whole, broken = (sample_job(tmp_path / name, model, data, max_prompts=36) for name in ("whole", "broken"))
    sample_table(whole)
    written = sample.write_part

    def stop_after_the_first(place: Path, value: Any) -> None:
        written(place, value)
        (broken.resume / STOP_FILE_NAME).touch()

    monkeypatch.setattr(sample, "write_part", stop_after_the_first)
    with pytest.raises(PreemptedError):
        sample_table(broken)
    monkeypatch.setattr(sample, "write_part", written)
    (broken.resume / STOP_FILE_NAME).unlink()
    assert [part.name for part in (broken.resume / "sampled").iterdir()] == ["part-000000.json"]
    sample_table(broken)
    assert rows(broken) == rows(whole)


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        (SampleConfig, {"table": "preference", "samples_per_prompt": 1}, r"samples_per_prompt=1 for pairs.*at least 2"),
        (SampleConfig, {"table": "unpaired"}, r"min_reward=null for the table 'unpaired'"),
        (IterativeConfig, {"sample": {"samples_per_prompt": 1}}, r"samples_per_prompt=1 for pairs"),
        (IterativeConfig, {"method": "kto"}, r"min_reward=null"),
    ],
)
def test_a_table_that_cannot_be_made_is_refused(config: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**settings)


@pytest.mark.usefixtures("all_end")
def test_a_round_trains_on_what_the_model_said_and_another_attempt_does_not_ask_again(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = IterativeConfig.model_validate(
        {
            "sample": {"samples_per_prompt": 4, "rewards": VOWELS, "rollout": ROLLOUT},
            "engine": ENGINE,
            "lora": {"rank": 0},
            "optimizer": {"learning_rate": 1e-2, "schedule": "constant", "warmup_fraction": 0.0},
            "max_length_tokens": 64,
            "max_steps": 8,
        }
    )
    places = {name: tmp_path / name for name in ("output", "resume")}
    for place in places.values():
        place.mkdir()
    refs = {"model": ArtifactRef(kind="model", key="k" * 64, uri="", sha256="s" * 64, producer="base")}
    events = EventLog(tmp_path / "events.jsonl")
    context = StageContext(config, {"model": model, "data": data}, refs, **places, seed=3, attempt=1, events=events)
    iterative.run(context)
    assert (places["output"] / "zero").is_dir()
    lines = [line for line in events.path.read_text().splitlines() if '"margin"' in line]
    assert len(lines) == 8
    monkeypatch.setattr(sample, "sample_table", None)
    (tmp_path / "again").mkdir()
    iterative.run(replace(context, output=tmp_path / "again", attempt=2))


def test_answers_are_drawn_by_one_process_however_many_train(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = IterativeConfig.model_validate({"engine": {"world_size": 2, "gpus_per_rank": 0.5}})
    refs = {"model": ArtifactRef(kind="model", key="k" * 64, uri="", sha256="s" * 64, producer="base")}
    events = EventLog(tmp_path / "events.jsonl")
    context = StageContext(config, {"model": model, "data": data}, refs, tmp_path, tmp_path, seed=3, attempt=1, events=events)
    asked = []
    monkeypatch.setattr("tasks.sample.launch", lambda *_, resources, **__: asked.append(resources) or {"train_rows": 1})
    monkeypatch.setattr(iterative, "run_training", lambda *_: None)
    iterative.run(context)
    [resources] = asked
    assert [bundle.gpus for bundle in resources.bundles] == [0.5]
