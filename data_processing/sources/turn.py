"""One turn as people write it: roles by many names, contents as text or in parts, calls, reasoning, weights."""

from __future__ import annotations

import json
import math
from typing import Any

from data_processing.turns import KEPT, PLAIN_KEYS, Message


class BadRow(Exception):
    """A row that cannot be used; the message is the reason."""


ROLE_NAMES: dict[str, str] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "ipython": "tool",
}
_REASONING = ("reasoning_content", "reasoning", "thinking")
_WEIGHTS = ("weight", "loss_weight", "train")
# Columns of rows, keys of messages and endings of shard members that hold what a text model cannot read.
MEDIA = frozenset(
    [
        "image",
        "images",
        "image_url",
        "audio",
        "audios",
        "input_audio",
        "video",
        "videos",
        "jpg",
        "jpeg",
        "png",
        "webp",
        "gif",
        "bmp",
        "mp3",
        "wav",
        "flac",
        "ogg",
        "mp4",
        "webm",
    ]
)
# Keys of a part of a content, of a call, and of the function that it calls.
_PART_KEYS = frozenset({"type", "text", "value", "reasoning", "thinking", "tool_call", "id", *MEDIA})
_CALL_KEYS = frozenset({"id", "type", "function", "index", "name", "arguments"})
_FUNCTION_KEYS = frozenset({"name", "arguments", "id", "type"})
KNOWN_KEYS = frozenset({"role", "from", "content", "value", "function_call", *KEPT, *_REASONING, *_WEIGHTS, *MEDIA})


def unknown_inside(item: dict[str, Any]) -> set[str]:
    """Keys of a message's parts and calls that nothing here makes use of, with their place in it."""
    parts, calls = (value if isinstance(value := item.get(key), list) else [] for key in ("content", "tool_calls"))
    functions = [call.get("function") for call in calls if isinstance(call, dict)]
    inside = (
        ("content[]", parts, _PART_KEYS),
        ("tool_calls[]", calls, _CALL_KEYS),
        ("tool_calls[].function", functions, _FUNCTION_KEYS),
    )
    return {
        f"{place}.{key}"
        for place, objects, known in inside
        for each in objects
        if isinstance(each, dict)
        for key in each.keys() - known
        if each[key] not in (None, [], {}, "")
    }


def plain_turn(role: str, content: Any, place: str) -> Message:
    """A turn that is a text to the letter."""
    if not isinstance(content, str) or not content.strip():
        raise _no_text(content, place)
    return {"role": role, "content": content}


def turn(item: Any, column: str, index: int) -> Message | None:
    """A message written as role and content, or as from and value; None for a system message that says nothing."""
    if not isinstance(item, dict):
        raise BadRow(f"'{column}[{index}]' is {kind(item)}, expected an object with role and content (or from and value)")
    role, content = ("role", "content") if "role" in item else ("from", "value")
    name, said = item.get(role), item.get(content)
    if not isinstance(name, str) or name not in ROLE_NAMES:
        raise BadRow(f"'{column}[{index}]' has role {name!r}, allowed: {', '.join(ROLE_NAMES)}")
    if len(item) == PLAIN_KEYS and name != "function_call" and isinstance(said, str) and said.strip():
        return {"role": ROLE_NAMES[name], "content": said}
    return _rich_turn(item, name, said, f"{column}[{index}]", f"{column}[{index}].{content}")


def refuse_media(values: dict[str, Any], place: str) -> None:
    """Raise `BadRow` where an object has an image, audio or video."""
    for name in MEDIA & values.keys():
        if values[name]:
            raise BadRow(f"{place}'{name}' holds an image, audio or video: the models here read text only; remove the row")


def _rich_turn(item: dict[str, Any], name: str, said: Any, place: str, content_place: str) -> Message | None:
    role = ROLE_NAMES[name]
    refuse_media(item, f"'{place}': ")
    keys = {key: item[key] for key in ("name", "tool_call_id") if item.get(key)}
    calls = list(_objects(item.get("tool_calls"), f"{place}.tool_calls"))
    if item.get("function_call"):
        calls.append(item["function_call"])
    if name == "function_call":
        calls, said = _calls_in(said, content_place), ""
    thoughts = [item[key] for key in _REASONING if item.get(key)]
    if wrong := next((thought for thought in thoughts if not isinstance(thought, str)), None):
        raise BadRow(f"the reasoning of '{place}' is {kind(wrong)}, expected text")
    if isinstance(said, list):
        said = _joined(said, content_place, thoughts, calls)
    if calls:
        keys["tool_calls"] = [_call(call, f"{place}.tool_calls[{i}]") for i, call in enumerate(calls)]
    if thoughts := [thought for thought in thoughts if not (isinstance(said, str) and thought in said)]:
        keys["reasoning_content"] = _one_text(thoughts, place)
    if (weight := _weight(item, role, place)) != 1:
        keys["weight"] = weight or 0
    if role != "assistant" and keys.keys() & {"tool_calls", "reasoning_content"}:
        raise BadRow(f"'{place}' is a {role} turn with calls or reasoning, which only assistant turns have")
    if calls and (said is None or said == ""):
        return {"role": role, "content": "", **keys}
    if role == "system" and isinstance(said, str) and not said.strip():
        return None
    return plain_turn(role, said, content_place) | keys


def _joined(parts: list[Any], place: str, thoughts: list[Any], calls: list[Any]) -> str:
    """The text of a content in parts; reasoning and calls among them are added to `thoughts` and `calls`."""
    texts: list[str] = []
    for i, part in enumerate(parts):
        of_kind = "text" if isinstance(part, str) else part.get("type") if isinstance(part, dict) else None
        value = part if isinstance(part, str) else _value(part, of_kind) if isinstance(part, dict) else None
        if isinstance(of_kind, str) and of_kind in MEDIA:
            raise BadRow(f"'{place}[{i}]' is an image, audio or video: the models here read text only; remove the row")
        if of_kind == "tool_call":
            calls += _calls_in(value, f"{place}[{i}]")
        elif of_kind in ("text", "reasoning", "thinking") and isinstance(value, str):
            (texts if of_kind == "text" else thoughts).append(value)
        else:
            raise BadRow(f"'{place}[{i}]' is a part of type {of_kind!r}, allowed: text, reasoning, thinking, tool_call")
    return "".join(texts)


def _value(part: dict[str, Any], of_kind: Any) -> Any:
    return next((part[name] for name in ("text", "value", str(of_kind)) if part.get(name) is not None), None)


def _calls_in(value: Any, place: str) -> list[Any]:
    """The calls that a turn is the JSON of: an object, or a list of them."""
    decoded = _decoded(value, place)
    return decoded if isinstance(decoded, list) else [decoded]


def _call(call: Any, place: str) -> dict[str, Any]:
    """A call with its arguments as an object, which is how templates write them into their own form."""
    if isinstance(call, str):
        call = _decoded(call, place)
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise BadRow(f"'{place}' is no call with a name and arguments")
    arguments = function.get("arguments")
    arguments = {} if arguments in (None, "") else _decoded(arguments, f"{place}.arguments")
    if not isinstance(arguments, dict):
        raise BadRow(f"'{place}.arguments' is {kind(arguments)}, expected an object")
    named = {"id": call["id"]} if call.get("id") else {}
    return {**named, "type": "function", "function": {"name": function["name"], "arguments": _json(arguments, place)}}


def tools(value: Any, column: str) -> list[dict[str, Any]]:
    """The functions that a cell describes, each as `{type: function, function: {name, description, parameters}}`."""
    described: list[dict[str, Any]] = []
    for i, tool in enumerate(_objects(value, column)):
        tool = _decoded(tool, f"{column}[{i}]")  # noqa: PLW2901 - some sets keep each function as a text of its own
        if (
            not isinstance(tool, dict)
            or not isinstance(tool.get("function", tool), dict)
            or not tool.get("function", tool).get("name")
        ):
            raise BadRow(f"'{column}[{i}]' describes no function with a name")
        described.append(_json(tool if "function" in tool else {"type": "function", "function": tool}, f"{column}[{i}]"))
    return described


def _objects(value: Any, place: str) -> list[Any]:
    if value is None or value == "":
        return []
    decoded = _decoded(value, place)
    if not isinstance(decoded, list):
        raise BadRow(f"'{place}' is {kind(decoded)}, expected a list")
    return decoded


def _decoded(value: Any, place: str) -> Any:
    """What a text is the JSON of; any other value as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise BadRow(f"'{place}' is not valid JSON: {error}") from error


def _json(value: Any, place: str) -> Any:
    """The value, if it can be written as JSON."""
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadRow(f"'{place}' cannot be written as JSON: {error}") from error
    return value


def _one_text(thoughts: list[str], place: str) -> str:
    """The reasoning, which may stand under several names, but only once."""
    if len(set(thoughts)) > 1:
        raise BadRow(f"'{place}' has two different reasonings ({', '.join(_REASONING)})")
    return thoughts[0]


def _weight(item: dict[str, Any], role: str, place: str) -> float:
    """What a turn's tokens count in the loss: 1 where it does not say, and for roles that are never learnt."""
    product = 1.0
    for name in (name for name in _WEIGHTS if item.get(name) is not None):
        weight = item[name]
        if not isinstance(weight, (int, float)) or not math.isfinite(weight) or weight < 0:
            raise BadRow(f"'{place}.{name}' is {weight!r}, allowed: 0 (not learnt), 1, and other numbers above 0")
        if role != "assistant" and weight:
            raise BadRow(f"'{place}.{name}' is {weight!r}, but only assistant turns are learnt: set it to 0")
        product *= weight
    return product if role == "assistant" else 1.0


def _no_text(value: Any, place: str) -> BadRow:
    return BadRow(f"'{place}' is empty" if isinstance(value, str) else f"'{place}' is {kind(value)}, expected text")


def kind(value: Any) -> str:
    """A value's kind for messages."""
    return "missing" if value is None else f"a {type(value).__name__}" + (" without entries" if value == [] else "")
