"""JSON that is valid under a schema, as a reward."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from data_processing.errors import ConfigError
from rlhf_core.rewards.base import ScoredResponse
from rlhf_core.rewards.verifiers.answers import without_thinking
from rlhf_core.rewards.verifiers.verifier import Verifier, need
from rlhf_core.settings.rewards.verifiers import JsonSchemaReward

if TYPE_CHECKING:
    from rlhf_core.rewards.build import Around

_FENCE = re.compile(r"^[ \t]*```[^\n]*$", re.MULTILINE)
_Valid = Callable[[Any], bool]


def build(source: JsonSchemaReward, around: Around) -> Verifier[_Valid]:
    """From settings; raises `ConfigError` for what is no schema."""
    need("jsonschema", source.kind)
    given = None if source.json_schema is None else validity(source.json_schema, "json_schema")

    def expected(response: ScoredResponse) -> _Valid | None:
        """Without a schema in the settings that of the row; rows without one are not for this source."""
        own = response.columns.get(source.column)
        if given is not None or own is None:
            return given
        return validity(own, f"column '{source.column}' of prompt {response.prompt_id}")

    def worth(text: str, is_valid: _Valid) -> float:
        return float(is_valid(json.loads(text)))

    return Verifier(source.kind, expected, json_in, worth)


def json_in(text: str) -> str | None:
    """The response where it is JSON, else its last fenced block where that is; thinking apart. None where neither is."""
    said = without_thinking(text).strip()
    fences = [match.span() for match in _FENCE.finditer(said)]
    blocks = [said[start[1] : end[0]] for start, end in zip(fences[::2], fences[1::2], strict=False)]
    return next((candidate for candidate in (said, *blocks[-1:]) if is_json(candidate)), None)


def validity(schema: Any, place: str) -> _Valid:
    """Whether a value is valid under the schema, a mapping or its JSON; raises `ConfigError` naming `place` for what is none."""
    import jsonschema
    import referencing.exceptions

    try:
        schema = json.loads(schema) if isinstance(schema, str) else schema
        kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        kind.check_schema(schema)
        # With a registry of its own nothing that a schema refers to is fetched.
        validator = kind(schema, registry=referencing.Registry())
    except (ValueError, TypeError, jsonschema.SchemaError) as error:
        reason = getattr(error, "message", str(error))
        raise ConfigError(f"rewards: kind 'json_schema': {place} is no JSON schema: {reason}; correct it") from error

    def is_valid(value: Any) -> bool:
        try:
            return bool(validator.is_valid(value))
        except RecursionError:
            return False
        except referencing.exceptions.Unresolvable as error:
            raise ConfigError(
                f"rewards: kind 'json_schema': {place} refers to {error.ref!r}, which is not in it; schemas are not fetched, so put "
                "it under $defs"
            ) from error

    return is_valid


def is_json(text: str) -> bool:
    """Whether it is, as the standard has it: without NaN and infinities, and nested no deeper than Python reads."""
    try:
        json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
