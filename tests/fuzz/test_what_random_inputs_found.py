"""Each kind of input that once ended in a traceback, lost a text, or said nothing of what to do."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from data_processing.config import DataConfig, TableSource
from data_processing.errors import ConfigError, DataError
from data_processing.prepare import prepare
from data_processing.schemas import TableName
from data_processing.sources.rows import SourceRows
from flows.settings.presets import read_values, resolve
from flows.settings.yaml_values import parse_yaml
from rlhf_core.batching.refused import render_rows
from rlhf_core.events import EventLog
from rlhf_core.models.gate import examine
from rlhf_core.models.load import load_tokenizer
from rlhf_core.rewards.base import ScoredResponse
from rlhf_core.rewards.python_function import PythonScorer
from rlhf_core.settings.models import BaseModelConfig
from tasks.base_model import STAGE
from tasks.runtime.contract.context import StageContext
from tasks.runtime.contract.registry import load_stage
from tests.batching.template_cases import CHATML
from tests.tiny_models import tiny_model

ASKED = {"role": "user", "content": "When?"}
ANSWERED = {"role": "assistant", "content": "At noon."}


@pytest.mark.parametrize("text", ["&a [*a]", "[" * 1200])
def test_yaml_that_never_ends_is_no_yaml(text: str, tmp_path: Path) -> None:
    with pytest.raises(yaml.YAMLError, match="holds itself, or is nested too deeply"):
        parse_yaml(text)
    (tmp_path / "my.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"my\.yaml is not readable YAML: it holds itself.*; correct it"):
        read_values(tmp_path / "my.yaml")


def test_an_infinite_setting_is_refused_by_its_name() -> None:
    with pytest.raises(ConfigError, match=r"sft\.optimizer\.weight_decay: got inf; should be a finite number"):
        resolve("tiny", overrides={"sft.optimizer.weight_decay": float("inf")})


def test_a_missing_field_is_to_be_given() -> None:
    with pytest.raises(ConfigError, match=r"pipeline\.x\.stage: is missing; give it"):
        resolve("tiny", overrides={"pipeline.x": {"model": "sft"}})


@pytest.mark.parametrize("name", [":", ":STAGE", "..x:y", "a stage that breaks:STAGE"])
def test_a_stage_that_cannot_be_imported_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a stage that breaks.py").write_text("raise RuntimeError('no desk')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r"stage .*"):
        load_stage(name)


def read(table: TableName, row: dict[str, Any], tmp_path: Path) -> tuple[list[dict[str, Any]], list[str], list[str]]:
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    source = SourceRows(table, TableSource(path=str(tmp_path / "rows.jsonl")), f"data.{table}[0]", 1.0)
    rows = [row for row, _, _ in source]
    return rows, [bad["reason"] for bad in source.bad], source.notes


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (
            {"role": "assistant", "content": "At noon.", "reasoning": {"a": 1}},
            "the reasoning of 'messages[1]' is a dict, expected text",
        ),
        (
            {"role": "assistant", "content": "At noon.", "thinking": ["a"]},
            "the reasoning of 'messages[1]' is a list, expected text",
        ),
        ({"role": "assistant", "content": [{"type": ["text"], "text": "a"}]}, "is a part of type ['text'], allowed: text"),
    ],
)
def test_values_of_another_kind_are_refused_with_their_place(answer: dict[str, Any], reason: str, tmp_path: Path) -> None:
    rows, reasons, _ = read("sft", {"messages": [ASKED, answer]}, tmp_path)
    assert not rows and reason in reasons[0]


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"messages": [{**ASKED, "value": "Said elsewhere."}, ANSWERED]}, "messages[].value"),
        (
            {"conversations": [{"from": "human", "value": "When?", "content": "?"}, {"from": "gpt", "value": "At noon."}]},
            "conversations[].content",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "When?", "note": "x"}]}, ANSWERED]},
            "messages[].content[].note",
        ),
        (
            {"messages": [ASKED, {**ANSWERED, "tool_calls": [{"function": {"name": "f", "arguments": "{}", "why": "x"}}]}]},
            "messages[].tool_calls[].function.why",
        ),
        ({"prompt": "When?", "question": "Which?", "chosen": "At noon.", "rejected": "No."}, "question"),
    ],
)
def test_what_is_not_used_inside_a_message_is_named(row: dict[str, Any], named: str, tmp_path: Path) -> None:
    table: TableName = "preference" if "chosen" in row else "sft"
    rows, _, notes = read(table, row, tmp_path)
    assert rows and f"'{named}'" in notes[0]


@pytest.mark.parametrize(("beside", "where"), [("", "response"), ("Of a column.", "last_answer")])
def test_the_answer_of_a_conversation_is_not_lost_to_a_column_of_its_name(beside: str, where: str, tmp_path: Path) -> None:
    [row], _, _ = read("prompts", {"messages": [ASKED, ANSWERED], "response": beside}, tmp_path)
    extra = json.loads(row["extra"])
    assert extra[where] == [ANSWERED] and (not beside or extra["response"] == beside)


def test_a_row_that_nobody_thought_of_is_refused_as_any_other_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: Any) -> None:
        raise ZeroDivisionError("who would have thought")

    monkeypatch.setattr("data_processing.sources.rows.recognise", breaks)
    _, reasons, _ = read("sft", {"messages": [ASKED, ANSWERED]}, tmp_path)
    assert reasons == ["could not be read as a row: ZeroDivisionError: who would have thought"]


def test_an_error_in_rendering_names_the_row() -> None:
    def breaks(row: Any) -> None:
        raise RuntimeError("no desk")

    with pytest.raises(
        DataError, match=r"table 'sft', row 0 \(id 7\): rendering it failed: RuntimeError: no desk; change the row"
    ):
        render_rows("sft", [{"id": "7"}], breaks, 1.0)


def test_a_disk_that_fails_is_no_bad_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "response": "b"}')
    monkeypatch.setattr("data_processing.sources.files._open", fails)
    with pytest.raises(OSError, match="Input/output"):
        prepare(
            DataConfig.model_validate({"procedures": None, "sft": [{"path": str(tmp_path / "rows.jsonl")}]}), tmp_path / "out", 0
        )


class Odd:
    def __float__(self) -> float:
        raise RuntimeError("odd")

    def __repr__(self) -> str:
        raise ValueError("unsaid")


def score(function: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = ModuleType("found_by_the_fuzz")
    module.score = function  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "found_by_the_fuzz", module)
    return PythonScorer("found_by_the_fuzz:score").score([ScoredResponse("p", [ASKED], None, [1], [2], "a")])


@pytest.mark.parametrize("returned", [[Odd()], Odd(), [{"score": Odd()}]])
def test_objects_that_raise_when_they_are_asked_are_no_rewards(returned: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"found_by_the_fuzz:score' must return a list of numbers, not"):
        score(lambda completions: returned, monkeypatch)


@pytest.mark.parametrize("error", [GeneratorExit, asyncio.CancelledError])
def test_a_function_that_raises_what_is_no_exception_is_named(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    def raises(completions: Any) -> None:
        raise error

    with pytest.raises(ConfigError, match=rf"found_by_the_fuzz:score' raised {error.__name__}"):
        score(raises, monkeypatch)


def edit(folder: Path, name: str, **values: Any) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def odd_opening(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(CHATML.replace("assistant\n{% endif", "assistant\nSure! {% endif"))


def unknown_token(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    del tokenizer["model"]["vocab"]["w"]
    edit(folder, "tokenizer.json", model={**tokenizer["model"], "merges": [], "unk_token": "<unk>"}, pre_tokenizer=None)


@pytest.mark.parametrize(
    ("architecture", "spoil", "said"),
    [
        ("gemma", lambda f: edit(f, "config.json", sliding_window=-3), "computes nothing: .*; correct it"),
        ("llama", lambda f: edit(f, "config.json", quantization_config={}), r"quantization_config \(no quant_method given\)"),
        ("llama", lambda f: edit(f, "config.json", auto_map=3), r"brings its own Python code \(3\)"),
        ("llama", odd_opening, "not even one question and its answer can be trained on"),
    ],
)
def test_the_gate_refuses(architecture: Any, spoil: Callable[[Path], object], said: str, tmp_path: Path) -> None:
    folder = tiny_model(tmp_path, architecture)
    spoil(folder)
    with pytest.raises(ConfigError, match=said):
        examine(folder, BaseModelConfig(path=str(folder)))


def test_files_of_earlier_tokenizers_are_not_put_on_top_of_a_mended_one(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path, "gemma")
    (folder / "added_tokens.json").write_text('{"<|more|>": 100000}')
    (folder / "special_tokens_map.json").write_text('{"additional_special_tokens": ["<|nothing|>"]}')
    output = tmp_path / "taken"
    output.mkdir()
    STAGE.run(
        StageContext(BaseModelConfig(path=str(folder)), {}, {}, output, tmp_path, 0, 1, EventLog(tmp_path / "events.jsonl"))
    )
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    assert max(load_tokenizer(output).get_vocab().values()) < rows
