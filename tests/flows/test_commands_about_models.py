"""`alignflow show`, `export` and `chat`: a model is found by every name it has, and is the one that was made."""

from __future__ import annotations

import io
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_models import tiny_model

from data_processing.errors import AlignflowError, ConfigError
from flows import cli
from flows.running.run_folder import RunFolder
from flows.settings.config import PipelineConfig
from rlhf_core.rollout import talk
from tasks.runtime.contract.context import ArtifactRef
from tasks.runtime.contract.home import Home
from tasks.runtime.contract.run_state import RunState
from tasks.runtime.contract.spec import Producer, write_json
from tasks.runtime.store.artifacts import Store
from tasks.runtime.store.manifest import Manifest
from tasks.runtime.store.records import NodeRecord, write_node

RUN, EARLIER = "nightly-20261129-020000-ab12", "nightly-20261128-020000-cd34"
KEYS = {"base": "b" * 64, "sft": "5" * 64, "convert_sft": "c" * 64, "earlier": "e" * 64}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def home(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """Two runs: a base model, a checkpoint trained from it, and the model that was converted to."""
    home = Home.open(tmp_path / "home")
    monkeypatch.setenv("ALIGNFLOW_HOME", str(home.root))
    monkeypatch.chdir(tmp_path)
    earlier = _publish(home, EARLIER, "convert_sft", "model", KEYS["earlier"], model)
    base = _publish(home, RUN, "base", "model", KEYS["base"], model)
    sft = _publish(home, RUN, "sft", "checkpoint", KEYS["sft"], None, base=base)
    _publish(home, RUN, "convert_sft", "model", KEYS["convert_sft"], model, checkpoint=sft)
    write_node(home, EARLIER, _record("convert_sft", "convert", earlier))
    for name in (EARLIER, RUN):
        folder = RunFolder(home, name)
        folder.write_config(PipelineConfig())
        folder.write_status(RunState.finished, began=time.time() - 3700, ended=time.time())
        time.sleep(0.01)
    interval = {"mean": 0.75, "low": 0.5, "high": 1.0}
    write_json(
        folder.path / "verdict.json", {"models": {"sft": {"sampled": {"procedures.score": interval}}}, "challenger": "sft"}
    )
    return home


def _record(node: str, stage: str, ref: ArtifactRef) -> NodeRecord:
    return NodeRecord(node=node, stage=stage, key=ref.key, description={}, ref=ref, cached=False, seconds=1.0, attempt=1)


def _publish(home: Home, run: str, node: str, kind: str, key: str, model: Path | None, **inputs: ArtifactRef) -> ArtifactRef:
    store = Store(home.store)
    staging = store.staging(kind, key, 1)
    for path in model.iterdir() if model else ():
        (staging / path.name).symlink_to(path)
    (staging / "events.jsonl").write_text("")
    files, content = store.describe_files(kind, key, staging)
    producer = Producer(run=run, node=node, stage=node, attempt=1)
    manifest = Manifest(
        kind=kind,
        key=key,
        sha256=content,
        files=files,
        producer=producer,
        inputs=inputs,
        description={},
        seconds=12.5,
        summary={"parameters": 1234},
        finished_at=time.time(),
    )
    ref = store.publish(staging, manifest)
    if run == RUN:
        write_node(home, run, _record(node, node, ref))
    return ref


def _alignflow(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """The command in this process, with the errors that `main` would print."""
    monkeypatch.setattr(sys, "argv", ["alignflow", *arguments])
    try:
        cli.app(standalone_mode=False)
    except SystemExit as end:
        assert not end.code


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("sft", "convert_sft"),
        ("base", "base"),
        ("latest/sft", "convert_sft"),
        (f"{EARLIER}/sft", "earlier"),
        ("nightly-20261128/sft", "earlier"),
        ("c" * 64, "convert_sft"),
        ("cccccc", "convert_sft"),
        ("convert_sft-eeeeee", "earlier"),
    ],
)
def test_a_model_is_found_by_every_name_it_has(
    home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str, key: str
) -> None:
    _alignflow(monkeypatch, "show", name)
    assert KEYS[key] in capsys.readouterr().out


def test_what_is_shown_of_a_model(home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    _alignflow(monkeypatch, "show", "sft")
    said = capsys.readouterr().out
    lines = {line.split()[0]: line for line in said.splitlines()}
    assert lines["folder"].split()[1] == str(home.store / "model" / KEYS["convert_sft"])
    assert "LlamaForCausalLM, 2 layers" in lines["model"]
    assert "MiB in" in lines["size"]
    assert f"by {RUN}/convert_sft in 12.5 s" in said
    assert "1234" in lines["parameters"]
    assert f"  checkpoint: checkpoint {'5' * 12}, made by {RUN}/sft" in said
    assert f"    base: model {'b' * 12}, made by {RUN}/base" in said
    assert "procedures.score (sampled): 0.75 [0.5, 1]" in said


def test_a_folder_is_a_model_too(
    home: Home, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _alignflow(monkeypatch, "show", str(model))
    assert "LlamaForCausalLM" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["show", "stf"], "did you mean 'sft'"),
        (["show", "latest/stf"], f"run {RUN} has no model 'stf'; did you mean 'sft'"),
        (["show", "nightly/sft"], "'nightly' begins the names of 2 runs"),
        (["show", "nihgtly-20261129-020000-ab12/sft"], f"did you mean '{RUN}'"),
        (["export", "sft", "."], "is there already"),
        (["logs", "latest", "stf"], "did you mean 'sft'"),
        (["logs", "latest", "sft"], f"nothing was printed here by sft of {RUN}, it was made by {RUN}/sft"),
    ],
)
def test_a_wrong_name_is_answered_with_the_nearest(
    home: Home, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    with pytest.raises(ConfigError) as error:
        _alignflow(monkeypatch, *arguments)
    assert said in str(error.value)


def test_a_model_whose_files_are_gone_is_said(home: Home, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (home.store / "model" / KEYS["base"] / "config.json").unlink()
    with pytest.raises(AlignflowError, match="no longer whole in the store"):
        _alignflow(monkeypatch, "export", "base", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_an_exported_model_is_a_folder_of_its_own(
    home: Home, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "my model").mkdir()
    _alignflow(monkeypatch, "export", "sft", str(tmp_path / "my model"))
    found = {path.name: path for path in (tmp_path / "my model").iterdir()}
    assert set(found) == {path.name for path in model.iterdir()}
    assert not any(path.is_symlink() for path in found.values())
    assert (found["model.safetensors"]).read_bytes() == (model / "model.safetensors").read_bytes()


def _chat(monkeypatch: pytest.MonkeyPatch, *arguments: str, typed: str = "") -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    _alignflow(monkeypatch, "chat", "sft", "--max-new-tokens", "6", "--temperature", "0", *arguments)


def test_an_answer_is_what_the_model_says(
    home: Home, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Greedy, it is the text that evaluation gets from the same folder and prompt."""
    from rlhf_core.batching.templates import Renderer
    from rlhf_core.models.load import load_tokenizer
    from rlhf_core.precision import native_dtype
    from rlhf_core.rollout.base import Sampling, generate
    from rlhf_core.rollout.hf_engine import HfGenerator

    _chat(monkeypatch, "--prompt", "Hello")
    renderer = Renderer(load_tokenizer(model))
    generator = HfGenerator(model, dtype=native_dtype(on_gpu=False), max_model_len=200, max_num_seqs=1, trust_remote_code=False)
    sampling = Sampling(temperature=1.0, max_new_tokens=6, n=1, greedy=True, stop_ids=tuple(renderer.stop_ids))
    [[expected]] = generate(generator, [renderer.prompt_ids([{"role": "user", "content": "Hello"}])], sampling, 0)
    said = capsys.readouterr().out
    assert said.rstrip("\n") == renderer.tokenizer.decode(expected.response_ids, skip_special_tokens=True)


def test_a_conversation_goes_on_until_a_new_one_begins(
    home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    answer = talk.Talker.answer

    def heard(self: Any, prompt: list[int], **how: Any) -> Any:
        asked.append(len(prompt))
        return answer(self, prompt, **how)

    monkeypatch.setattr(talk.Talker, "answer", heard)
    _chat(monkeypatch, typed="Hello\n\nHello\n/new\nHello\n/exit\nHello\n")
    first, second, again = asked
    assert second > first == again


def test_a_conversation_that_is_too_long_is_said_and_can_be_left(
    home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _chat(monkeypatch, "--max-length-tokens", "3", typed="Hello\nHello\n")
    assert capsys.readouterr().err.count("begin a new one, or raise --max-length-tokens") == 2
    with pytest.raises(ConfigError, match="tokens of 3"):
        _chat(monkeypatch, "--max-length-tokens", "3", "--prompt", "Hello")


def test_runs_are_listed_the_newest_first(
    home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _alignflow(monkeypatch, "runs")
    _, newest, earlier = capsys.readouterr().out.splitlines()
    assert newest.split()[:2] == [RUN, "finished"]
    assert "1:01:40" in newest and "3 done, 0 cached" in newest and "challenger: sft" in newest
    assert earlier.startswith(EARLIER)
    _alignflow(monkeypatch, "runs", "--count", "1")
    assert "and 1 earlier" in capsys.readouterr().out


def test_names_of_artifacts_are_those_that_the_cache_lists(
    home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _alignflow(monkeypatch, "cache", "ls")
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if " model " in line]
    assert len(listed) == 3
    for name in listed:
        _alignflow(monkeypatch, "show", name)
    assert json.loads((home.store / "model" / KEYS["base"] / "manifest.json").read_text())["key"] == KEYS["base"]
