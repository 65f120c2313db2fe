"""Whether a template renders all that a conversation says. What it leaves out would be lost without a word, so the row is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data_processing.errors import DataError

_CLOSE_THINK = "</think>"


def with_reasoning(messages: Sequence[Mapping[str, Any]], *, in_content: bool) -> Sequence[Mapping[str, Any]]:
    """The messages with reasoning where their template looks for it.

    That is before the content, as a think block; or under each of the names that templates read.
    """
    if not any("reasoning_content" in message for message in messages):
        return messages
    return [_reasoned(message, in_content) for message in messages]


def check_shown(messages: Sequence[Mapping[str, Any]], text: str, first_learnt: int) -> None:
    """Raise `DataError` unless each message's content and calls stand in the rendering `text`, and the reasoning of learnt turns.

    Turns before message `first_learnt` may lose their reasoning, as templates have it for what lies behind.
    """
    words = ""
    for number, message in enumerate(messages):
        for what, piece in _pieces(message, number >= first_learnt):
            if piece in text or _escaped(piece) in text:
                continue
            words = words or " ".join(text.split())
            if " ".join(piece.split()) not in words:
                raise DataError(
                    f"the chat template leaves out the {what} of message {number} ({message['role']}), or changes it: "
                    f"{piece[:80]!r} is not in its rendering; change the row, or give another template in model.chat_template"
                )


def _reasoned(message: Mapping[str, Any], in_content: bool) -> Mapping[str, Any]:
    reasoning = message.get("reasoning_content")
    if reasoning is None:
        return message
    if not in_content:
        return {**message, "reasoning": reasoning, "thinking": reasoning}
    rest = {name: value for name, value in message.items() if name != "reasoning_content"}
    return {**rest, "content": f"<think>\n{reasoning.strip()}\n{_CLOSE_THINK}\n\n{message['content']}"}


def _pieces(message: Mapping[str, Any], learnt: bool) -> Iterator[tuple[str, str]]:
    thought, _, said = message["content"].rpartition(_CLOSE_THINK)
    if said.strip():
        yield "content", said.strip()
    if learnt and (own := (message.get("reasoning_content") or thought).strip().removeprefix("<think>").strip()):
        yield "reasoning", own
    for call in message.get("tool_calls", ()):
        yield "tool call", call["function"]["name"]
        yield from (("tool call", leaf) for leaf in _leaves(call["function"]["arguments"]))


def _leaves(value: Any) -> Iterator[str]:
    """The texts and names that a JSON value holds."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield name
            yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, str) and value.strip():
        yield value.strip()


def _escaped(piece: str) -> str:
    """The piece as it stands inside JSON."""
    return json.dumps(piece, ensure_ascii=False)[1:-1]
