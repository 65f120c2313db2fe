"""Calls of functions in what a model has said, read by vLLM's parsers: one for each way that families of models write them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from data_processing.errors import ConfigError
from data_processing.wording import did_you_mean


def tool_reader(name: str, tokenizer: Any) -> Callable[[str], dict[str, Any]]:
    """From the text of a turn to its message, with `tool_calls` where it calls functions.

    The reader raises `ValueError` for a call that does not parse. Raises `ConfigError` where vLLM is missing, and for an unknown name.
    """
    try:
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
        from vllm.tool_parsers import ToolParserManager
    except ImportError as error:
        raise ConfigError(
            f"environment.tool_parser='{name}' needs vLLM, which does not import here ({error}); let the environment read calls itself"
        ) from error
    try:
        parser = ToolParserManager.get_tool_parser(name)(tokenizer)
    except KeyError:
        known = sorted({*ToolParserManager.tool_parsers, *ToolParserManager.lazy_parsers})
        raise ConfigError(
            f"environment.tool_parser: vLLM has no parser '{name}'; {did_you_mean(name, known)}it has {', '.join(known)}"
        ) from None
    request = ChatCompletionRequest(model="policy", messages=[])
    marker = getattr(parser, "tool_call_start_token", None) or getattr(parser, "bot_token", None)

    def read(text: str) -> dict[str, Any]:
        found = parser.extract_tool_calls(text, request)
        if not found.tools_called:
            if marker and marker in text:
                raise ValueError(f"a call behind {marker!r} that parser '{name}' cannot read")
            return {"role": "assistant", "content": text}
        calls = [_call(call.id, call.function) for call in found.tool_calls]
        return {"role": "assistant", "content": found.content or "", "tool_calls": calls}

    return read


def _call(call_id: str, function: Any) -> dict[str, Any]:
    """As chat templates take it: arguments are a mapping."""
    arguments = json.loads(function.arguments or "{}")
    if not isinstance(arguments, dict):
        raise ValueError(f"a call of '{function.name}' whose arguments are a {type(arguments).__name__}, not an object")
    return {"id": call_id, "type": "function", "function": {"name": function.name, "arguments": arguments}}
