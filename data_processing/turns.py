"""What a conversation holds beside roles and texts (calls, reasoning, tools, further columns), and how tables keep it.

A message in memory is `{role, content}` and, where a turn has them, the keys `KEPT`. In a table the message lists hold role and
content alone; the keys are JSON in the column `turns`, each with the column and the index of its message.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

Message = dict[str, Any]

# Calls of functions; what the model thought; who speaks; the call that a result answers; what a turn's tokens count in the loss
# (none: 1; 0: it is not learnt).
KEPT = ("tool_calls", "reasoning_content", "name", "tool_call_id", "weight")
# The role of a text that is no conversation: it is rendered without a template, and learnt whole.
TEXT_ROLE = "text"
_MESSAGE_COLUMNS = ("messages", "prompt", "chosen", "rejected", "response")
PLAIN_KEYS = 2  # role and content
# The further column of a prompt's row that holds it without the instruction that its source added.
ASKED = "asked"


def pack_turns(row: dict[str, Any]) -> None:
    """Move the keys of a row's messages into its column `turns`; without any the row stays as it is."""
    turns: list[dict[str, Any]] = []
    for side in _MESSAGE_COLUMNS:
        messages = row.get(side)
        if messages is None or all(len(message) == PLAIN_KEYS for message in messages):
            continue
        for index, message in enumerate(messages):
            if keys := {name: message[name] for name in KEPT if name in message}:
                turns.append({"side": side, "index": index, "keys": json.dumps(keys, ensure_ascii=False)})
        row[side] = [{"role": message["role"], "content": message["content"]} for message in messages]
    if turns:
        row["turns"] = turns


def messages_of(row: Mapping[str, Any], column: str) -> list[Message]:
    """The messages of a column of a table's row, with what their turns hold beside role and content."""
    messages: list[Message] = row[column]
    turns = [turn for turn in row.get("turns") or () if turn["side"] == column]
    if not turns:
        return messages
    merged = [dict(message) for message in messages]
    for turn in turns:
        merged[turn["index"]] |= json.loads(turn["keys"])
    return merged


def tools_of(row: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The functions that the conversation of a table's row may call, as the chat template takes them; None without any."""
    tools: list[dict[str, Any]] | None = json.loads(row["tools"]) if row.get("tools") else None
    return tools


def with_text_behind(prompt: Sequence[Mapping[str, Any]], text: str) -> list[Message]:
    """The prompt with a text behind what was asked last: the user's last turn, also where a function has answered since.

    Without a turn of a user it is behind the last one.
    """
    turns = [dict(turn) for turn in prompt]
    asked = next((turn for turn in reversed(turns) if turn["role"] == "user"), turns[-1])
    asked["content"] += text
    return turns


def extra_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """The further columns that a prompt's row had in its source."""
    extra: dict[str, Any] = json.loads(row["extra"]) if row.get("extra") else {}
    return extra
