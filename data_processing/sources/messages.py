"""Cells of source rows as messages: texts, message lists, and texts that hold turns (JSON of message lists, transcripts)."""

from __future__ import annotations

import json
import re
from typing import Any

from data_processing.sources.turn import KNOWN_KEYS, BadRow, kind, plain_turn, turn, unknown_inside
from data_processing.turns import PLAIN_KEYS, Message

_TRANSCRIPT_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")


def conversation(value: Any, column: str) -> list[Message]:
    """The messages of a cell of a column that holds conversations; a text without turns is one message of the user."""
    return messages(_objects(value) or _transcript(value) or value, column, "user")


def prompt(value: Any, column: str) -> list[Message]:
    """The messages of a prompt; a text is the turns that it holds, or one message of the user."""
    return messages(turns_in(value) or value, column, "user")


def messages(value: Any, column: str, text_role: str) -> list[Message]:
    """The messages of a cell with a list of them, or with one, or with a text, which is one of `text_role` to the letter.

    A system message that says nothing is left out.
    """
    if isinstance(value, str):
        return [plain_turn(text_role, value, column)]
    items = [value] if isinstance(value, dict) else value
    if not isinstance(items, list) or not items:
        raise BadRow(f"'{column}' is {kind(value)}, expected text or a list of messages")
    said = [message for i, item in enumerate(items) if (message := turn(item, column, i)) is not None]
    if not said:
        raise BadRow(f"'{column}' holds nothing but an empty system message")
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
    content: str = plain_turn("user", value, column)["content"]
    return content


def unknown_keys(value: Any) -> set[str]:
    """The keys of a cell's messages that nothing here makes use of."""
    items = json_messages(value) if isinstance(value, str) else value if isinstance(value, list) else [value]
    found = set[str]()
    for item in items:
        if not isinstance(item, dict):
            continue
        if len(item) > PLAIN_KEYS:
            known = KNOWN_KEYS - ({"from", "value"} if "role" in item else {"role", "content"})
            found |= {key for key in item.keys() - known if item[key] not in (None, [], {}, "")}
        if isinstance(item.get("content"), list) or item.get("tool_calls"):
            found |= unknown_inside(item)
    return found


def _objects(value: Any) -> list[Any]:
    """The objects that a text is a JSON list of; none where it is another text."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return []
    try:
        decoded = json.loads(value)
    except (ValueError, RecursionError):
        return []
    return decoded if isinstance(decoded, list) and all(isinstance(item, dict) for item in decoded) else []


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
    return [plain_turn(roles[speaker], said, f"turn {i} of the transcript") for i, (speaker, said) in enumerate(turns, 1)]
