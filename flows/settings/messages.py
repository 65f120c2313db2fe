"""Words for wrong input: pydantic's findings as lines a user can act on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from data_processing.wording import did_you_mean


def validation_message(error: ValidationError, model: type[BaseModel]) -> str:
    """One line a finding: dotted field, what it got, what is allowed; unknown names come with a suggestion."""
    return "\n".join(_line(finding, model) for finding in error.errors(include_url=False))


def _line(finding: Any, model: type[BaseModel]) -> str:
    path = _dotted(finding["loc"])
    if finding["type"] == "extra_forbidden":
        known = _field_names(finding["loc"][:-1], model)
        hint = did_you_mean(str(finding["loc"][-1]), known)
        allowed = f"allowed are {', '.join(known)}" if known else "no such field"
        return f"{path}: unknown field; {hint}{allowed}"
    if finding["type"] == "missing":
        return f"{path}: is missing; give it"
    reason = finding["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if isinstance(finding["input"], (dict, BaseModel)):
        return f"{path}: {reason}" if path else reason
    return f"{path}: got {finding['input']!r}; {reason}"


def _dotted(place: Sequence[str | int]) -> str:
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")


def _field_names(place: Sequence[str | int], model: type[BaseModel]) -> list[str]:
    """Names of the fields at `place`, found by walking the JSON schema; empty where there are none."""
    schema: dict[str, Any] = model.model_json_schema()
    definitions = schema.get("$defs", {})
    for part in place:
        child = schema.get("items", {}) if isinstance(part, int) else schema.get("properties", {}).get(part, {})
        options = [child, *child.get("anyOf", [])]
        schema = next((definitions[o["$ref"].rsplit("/", 1)[-1]] for o in options if "$ref" in o), child)
        if not isinstance(part, int) and "items" not in schema:
            schema = next((o for o in options if "items" in o), schema)
        if "$ref" in schema:
            schema = definitions[schema["$ref"].rsplit("/", 1)[-1]]
    return list(schema.get("properties", {}))
