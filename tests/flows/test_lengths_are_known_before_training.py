"""What stages would cut, or refuse for its length, is told when data and base model are there, and no model is trained before."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_models import tiny_model

from data_processing.schemas import to_table, write_table
from flows.graph.build import build_graph
from flows.running.lengths import windows_of
from flows.settings.presets import resolve
from rlhf_core.batching.templates import Renderer
from rlhf_core.models.load import load_tokenizer
from rlhf_core.recipes.lengths import Window, find_overlong
from tests.flows.test_what_is_refused_before_work import command

SFT = Window("sft", "sft", "train", 64, 0, True, 0.5, "max_length_tokens=64")


def conversation(number: int, words: int) -> dict[str, object]:
    said = [("user", f"question {number}"), ("assistant", " ".join(["yes"] * words))]
    return {"id": f"r{number}", "messages": [{"role": role, "content": content} for role, content in said]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models"), "llama")


def prepared(folder: Path, lengths: list[int]) -> Path:
    rows = [conversation(number, words) for number, words in enumerate(lengths)]
    write_table("sft", to_table("sft", rows), folder / "sft" / "train.parquet")
    return folder


def test_rows_are_measured_as_they_are_rendered(model: Path, tmp_path: Path) -> None:
    lengths = [2, 2, 30, 200]
    data = prepared(tmp_path, lengths)
    renderer = Renderer(load_tokenizer(model))
    tokens = [len(renderer.conversation(conversation(n, words)["messages"])) for n, words in enumerate(lengths)]  # type: ignore[arg-type]
    found = find_overlong(data, model, [SFT, replace(SFT, split="validation")])
    assert found.errors == []
    histogram, cut = found.lines
    assert histogram.startswith(f"lengths of sft/train, 4 rows in tokens: median {sorted(tokens)[2]}, longest {max(tokens)}; ")
    assert sum(int(part.split(": ")[1]) for part in histogram.partition("; ")[2].split(", ")) == 4
    long = [(f"r{n}", length) for n, length in enumerate(tokens) if length > 64]
    named = ", ".join(f"'{name}' ({length} tokens)" for name, length in sorted(long, key=lambda row: -row[1]))
    assert cut == f"sft: {len(long)} of 4 rows of sft/train have more than 64 tokens (max_length_tokens=64): {named}"


@pytest.mark.parametrize(
    ("window", "refused"),
    [
        (replace(SFT, drops=False), True),
        (replace(SFT, max_dropped_fraction=0.1), True),
        (replace(SFT, max_dropped_fraction=0.1, draws=4), True),
        (replace(SFT, max_dropped_fraction=0.1, draws=3), False),
        (replace(SFT, tokens=4096), False),
    ],
)
def test_what_a_stage_would_refuse_is_an_error(window: Window, refused: bool, model: Path, tmp_path: Path) -> None:
    found = find_overlong(prepared(tmp_path, [2, 2, 2, 200]), model, [window])
    assert bool(found.errors) == refused
    assert found.lines[0].startswith("lengths of")


def test_texts_that_are_cut_are_never_too_long(model: Path, tmp_path: Path) -> None:
    text = {"id": "t", "messages": [{"role": "text", "content": "yes " * 200}]}
    write_table("sft", to_table("sft", [text, conversation(1, 200)]), tmp_path / "sft" / "train.parquet")
    [error] = find_overlong(tmp_path, model, [replace(SFT, drops=False, cuts_texts=True)]).errors
    assert "1 of 2 rows" in error and "'r1'" in error
    assert "2 of 2 rows" in find_overlong(tmp_path, model, [replace(SFT, drops=False)]).errors[0]


def test_a_window_without_a_number_is_the_models(model: Path, tmp_path: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    room = config["max_position_embeddings"]
    data = prepared(tmp_path, [2, 2 * room])
    found = find_overlong(data, model, [replace(SFT, tokens=None, answer_tokens=16, setting="the model's positions")])
    assert f"1 of 2 rows of sft/train have more than {room - 16} tokens (the model's positions): 'r1'" in found.lines[-1]


def test_every_stage_that_reads_rows_has_its_windows() -> None:
    nodes = build_graph(resolve("quickstart", overrides={"preference.method": "kto", "online.rollout.max_new_tokens": 100}))
    found = {name: {(w.table, w.split) for w in windows_of(node)} for name, node in nodes.items()}
    assert found["sft"] == {("sft", "train"), ("sft", "validation")}
    assert found["preference"] == {(table, split) for table in ("preference", "unpaired") for split in ("train", "validation")}
    assert found["reward_model"] == {("preference", "train"), ("preference", "validation")}
    assert found["online"] == {("prompts", "train")}
    assert found["evaluate_base"] == {("prompts", "test"), ("sft", "test")}
    assert not any(found[name] for name in ("base", "data", "convert_sft", "compare"))
    by_steps = build_graph(resolve("quickstart", overrides={"reward_model.granularity": "step"}))["reward_model"]
    assert {(w.table, w.split) for w in windows_of(by_steps)} == {("stepwise", "train"), ("stepwise", "validation")}
    [online] = windows_of(nodes["online"])
    assert online.answer_tokens == 100


@pytest.mark.slow
def test_a_run_stops_before_it_trains(model: Path, tmp_path: Path) -> None:
    lines = [{"prompt": f"{n} + {n}?", "response": "word " * (3000 if n == 7 else 2)} for n in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = [f"model.path={model}", f"data.sft=[{{path: {tmp_path}/rows.jsonl}}]", "data.procedures=null"]
    settings += ["runtime.executor=subprocess", "data.test_fraction=0", "data.validation_fraction=0"]
    options = [part for setting in settings for part in ("--set", setting)]
    done = command(tmp_path / "home", "run", "--preset", "tiny", *options, "--until", "sft")
    assert done.returncode == 11, done.stdout + done.stderr
    assert "lengths of sft/train, 20 rows in tokens" in done.stdout
    assert "sft: 1 of 20 rows of sft/train have more than" in done.stderr
    assert "started" not in "".join(line for line in done.stdout.splitlines() if " sft " in line)


@pytest.mark.slow
def test_answers_that_are_all_good_stop_a_run_before_it_trains(model: Path, tmp_path: Path) -> None:
    lines = [{"prompt": f"{n} + {n}?", "response": str(2 * n), "desirable": True} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = [f"model.path={model}", f"data.unpaired=[{{path: {tmp_path}/rows.jsonl}}]", "data.procedures=null"]
    settings += ["runtime.executor=subprocess", "data.test_fraction=0", "data.validation_fraction=0"]
    settings += ["preference.method=kto", "pipeline={preference: {stage: preference, model: base}}"]
    options = [part for setting in settings for part in ("--set", setting)]
    done = command(tmp_path / "home", "run", "--preset", "tiny", *options, "--until", "preference")
    assert done.returncode == 11, done.stdout + done.stderr
    assert "unpaired/train: all 8 answers are desirable, and KTO moves the two kinds apart" in done.stderr
    assert " preference  " not in "".join(line for line in done.stdout.splitlines() if "started" in line)
