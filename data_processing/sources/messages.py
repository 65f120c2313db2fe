"""Cells of source rows as messages: texts, message lists, JSON strings of such lists, and transcripts."""

from __future__ import annotations

import json
import re
from typing import Any

Message = dict[str, str]

ROLE_NAMES: dict[str, str] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "tool": "tool",
}
_TRANSCRIPT_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")


class BadRow(Exception):
    """A row that cannot be used; the message is the reason."""


def conversation(value: Any, column: str, text_role: str) -> list[Message]:
    """The messages of a cell. A plain text is one message of `text_role`; a transcript is all its turns."""
    value = _decoded(value)
    if isinstance(value, str):
        return _transcript(value) or [_message(text_role, value, column)]
    if not isinstance(value, list) or not value:
        raise BadRow(f"'{column}' is {_kind(value)}, expected text or a list of messages")
    messages = [_from_object(item, column, i) for i, item in enumerate(value)]
    if "system" in [message["role"] for message in messages[1:]]:
        raise BadRow(f"'{column}' has a system message that is not the first")
    return messages


def text(value: Any, column: str) -> str:
    """A cell that must be a non-empty text."""
    return _message("user", value, column)["content"]


def _decoded(value: Any) -> Any:
    """Formats without lists keep message lists as JSON text; a text that only looks like one stays a text."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        decoded = json.loads(value)
    except (ValueError, RecursionError):
        return value
    holds_messages = isinstance(decoded, list) and decoded and all(isinstance(item, dict) for item in decoded)
    return decoded if holds_messages else value


def _from_object(item: Any, column: str, index: int) -> Message:
    """A message written as role and content, or as from and value."""
    if not isinstance(item, dict):
        raise BadRow(f"'{column}[{index}]' is {_kind(item)}, expected an object with role and content (or from and value)")
    role, content = ("role", "content") if "role" in item else ("from", "value")
    name, said = item.get(role), item.get(content)
    if not isinstance(name, str) or name not in ROLE_NAMES:
        raise BadRow(f"'{column}[{index}]' has role {name!r}, allowed: {', '.join(ROLE_NAMES)}")
    if not isinstance(said, str) or not said.strip():
        raise _no_text(said, f"{column}[{index}].{content}")
    return {"role": ROLE_NAMES[name], "content": said}


def _message(role: str, content: Any, place: str) -> Message:
    if not isinstance(content, str) or not content.strip():
        raise _no_text(content, place)
    return {"role": role, "content": content}


def _no_text(value: Any, place: str) -> BadRow:
    return BadRow(f"'{place}' is empty" if isinstance(value, str) else f"'{place}' is {_kind(value)}, expected text")


def _transcript(value: str) -> list[Message]:
    r"""Turns of "\n\nHuman: ...\n\nAssistant: ..."; none where the text is no transcript. An open last turn is dropped."""
    # Nearly every text is told apart by its beginning; the search would take half of a preparation's time.
    if not value.lstrip().startswith("Human:"):
        return []
    parts = _TRANSCRIPT_TURN.split(value)
    if "Assistant" not in parts[3::2]:
        return []
    turns = [(speaker, said.strip()) for speaker, said in zip(parts[1::2], parts[2::2], strict=True)]
    if turns[-1] == ("Assistant", ""):
        turns.pop()
    roles = {"Human": "user", "Assistant": "assistant"}
    return [_message(roles[speaker], said, f"turn {i} of the transcript") for i, (speaker, said) in enumerate(turns, 1)]


def _kind(value: Any) -> str:
    return "missing" if value is None else f"a {type(value).__name__}" + (" without entries" if value == [] else "")
