"""Words for wrong input: pydantic's findings as lines a user can act on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from pydantic import BaseModel, ValidationError

from data_processing.wording import did_you_mean


def validation_message(error: ValidationError, model: type[BaseModel]) -> str:
    """One line a finding: dotted field, what it got, what is allowed; unknown names come with a suggestion."""
    return "\n".join(_line(finding, model) for finding in error.errors(include_url=False))


def _line(finding: Any, model: type[BaseModel]) -> str:
    place, schema = _schema_at(finding["loc"], model)
    path = _dotted(place)
    if finding["type"] == "extra_forbidden":
        known = list(_schema_at(finding["loc"][:-1], model)[1].get("properties", {}))
        hint = did_you_mean(str(place[-1]), known)
        allowed = f"allowed are {', '.join(known)}" if known else "no such field"
        return f"{path}: unknown field; {hint}{allowed}"
    if finding["type"] == "missing":
        return f"{path}: is missing; give it"
    if finding["type"] in ("union_tag_invalid", "union_tag_not_found"):
        kinds = list(schema.get("discriminator", {}).get("mapping", {}))
        name = finding["ctx"]["discriminator"].strip("'")
        if finding["type"] == "union_tag_not_found":
            return f"{path}.{name}: is missing; allowed are {', '.join(kinds)}"
        given = finding["ctx"]["tag"]
        return f"{path}.{name}: got {given!r}; {did_you_mean(given, kinds)}allowed are {', '.join(kinds)}"
    reason = finding["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if isinstance(finding["input"], (dict, BaseModel)):
        return f"{path}: {reason}" if path else reason
    return f"{path}: got {finding['input']!r}; {reason}"


def _dotted(place: Sequence[str | int]) -> str:
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")


def _schema_at(place: Sequence[str | int], model: type[BaseModel]) -> tuple[list[str | int], dict[str, Any]]:
    """The JSON schema at `place`, empty where there is none, and the place without the names of kinds that pydantic puts in it."""
    schema = _schema_of(model)
    definitions = schema.get("$defs", {})
    path: list[str | int] = []
    for part in place:
        kinds = schema.get("discriminator", {}).get("mapping", {})
        if part in kinds:
            schema = definitions[kinds[part].rsplit("/", 1)[-1]]
            continue
        path.append(part)
        child = schema.get("items", {}) if isinstance(part, int) else schema.get("properties", {}).get(part, {})
        options = [child] if "discriminator" in child else [child, *child.get("anyOf", [])]
        schema = next((definitions[o["$ref"].rsplit("/", 1)[-1]] for o in options if "$ref" in o), child)
        if not isinstance(part, int) and "items" not in schema:
            schema = next((o for o in options if "items" in o), schema)
        if "$ref" in schema:
            schema = definitions[schema["$ref"].rsplit("/", 1)[-1]]
    return path, schema


@cache
def _schema_of(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema()
