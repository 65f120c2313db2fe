"""Prompts as plain text, for services that know no messages."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rlhf_core.batching.chat_template import Message


def said_in(message: Message) -> str:
    """What a message says, its tool calls as JSON in lines of their own."""
    calls = [json.dumps(call, ensure_ascii=False) for call in message.get("tool_calls") or ()]
    return "\n".join([message.get("content") or "", *calls])


def as_text(prompt: Sequence[Message]) -> str:
    """A single user turn as it was typed; several turns one after another, each under its role."""
    if [message["role"] for message in prompt] == ["user"]:
        return said_in(prompt[0])
    return "\n\n".join(f"{message['role'].capitalize()}:\n{said_in(message)}" for message in prompt)
