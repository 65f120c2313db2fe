"""Cells of source rows as messages: texts, message lists, and texts that hold turns (JSON of message lists, transcripts)."""

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


def conversation(value: Any, column: str) -> list[Message]:
    """The messages of a cell of a column that holds conversations; a text without turns is one message of the user."""
    return messages(_objects(value) or _transcript(value) or value, column, "user")


def prompt(value: Any, column: str) -> list[Message]:
    """The messages of a prompt; a text is the turns that it holds, or one message of the user."""
    return messages(turns_in(value) or value, column, "user")


def messages(value: Any, column: str, text_role: str) -> list[Message]:
    """The messages of a cell with a list of them, or with a text, which is one message of `text_role` to the letter."""
    if isinstance(value, str):
        return [_message(text_role, value, column)]
    if not isinstance(value, list) or not value:
        raise BadRow(f"'{column}' is {_kind(value)}, expected text or a list of messages")
    said = [_from_object(item, column, i) for i, item in enumerate(value)]
    if "system" in [message["role"] for message in said[1:]]:
        raise BadRow(f"'{column}' has a system message that is not the first")
    return said


def turns_in(value: Any) -> list[Any]:
    """The turns that a text holds: those of JSON messages, or of a transcript; none where it holds something else."""
    return json_messages(value) or _transcript(value)


def json_messages(value: Any) -> list[Any]:
    """The messages that a text is the JSON of, as formats without lists keep them; none where it is another text."""
    objects = _objects(value)
    return objects if all({"role", "content"} <= item.keys() or {"from", "value"} <= item.keys() for item in objects) else []


def text(value: Any, column: str) -> str:
    """A cell that must be a non-empty text."""
    return _message("user", value, column)["content"]


def _objects(value: Any) -> list[Any]:
    """The objects that a text is a JSON list of; none where it is another text."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return []
    try:
        decoded = json.loads(value)
    except (ValueError, RecursionError):
        return []
    return decoded if isinstance(decoded, list) and all(isinstance(item, dict) for item in decoded) else []


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


def _transcript(value: Any) -> list[Message]:
    r"""Turns of "\n\nHuman: ...\n\nAssistant: ..."; none where the text is no transcript. An open last turn is dropped."""
    # Nearly every text is told apart by its beginning; the search would take half of a preparation's time.
    if not isinstance(value, str) or not value.lstrip().startswith("Human:"):
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
