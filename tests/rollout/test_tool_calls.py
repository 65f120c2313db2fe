"""Calls of functions in what a model has said, read by vLLM's parsers."""

from __future__ import annotations

from typing import Any

import pytest

from data_processing.errors import ConfigError
from rlhf_core.rollout.tool_calls import tool_reader
from tests.tiny_models import tiny_tokenizer

pytest.importorskip("vllm", reason="vLLM is not installed on this machine", exc_type=ImportError)
pytestmark = pytest.mark.slow

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": [2, 3]}}\n</tool_call>'


@pytest.fixture(scope="module")
def read() -> Any:
    return tool_reader("hermes", tiny_tokenizer("qwen3"))


def test_calls_become_mappings_beside_what_else_was_said(read: Any) -> None:
    turn = read(f"Let me see.{CALL}{CALL}")
    assert (turn["role"], turn["content"].strip()) == ("assistant", "Let me see.")
    assert [call["function"] for call in turn["tool_calls"]] == [{"name": "add", "arguments": {"a": 1, "b": [2, 3]}}] * 2
    assert all(call["type"] == "function" and call["id"] for call in turn["tool_calls"])
    assert len({call["id"] for call in turn["tool_calls"]}) == 2


def test_a_turn_without_a_call_is_text(read: Any) -> None:
    assert read("It is 6.") == {"role": "assistant", "content": "It is 6."}


@pytest.mark.parametrize("text", ["<tool_call>add(1, 2)</tool_call>", '<tool_call>{"name": "add", "arguments": {"a": 1'])
def test_a_call_that_does_not_parse_is_an_error_of_the_turn(read: Any, text: str) -> None:
    with pytest.raises(ValueError, match="cannot read"):
        read(text)


def test_an_unknown_parser_is_named_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"vLLM has no parser 'hermess'; did you mean 'hermes'\? it has .*qwen3"):
        tool_reader("hermess", tiny_tokenizer("qwen3"))
