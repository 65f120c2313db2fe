"""The base of every settings model: closed, frozen, and aware of which fields can change a result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Settings(BaseModel):
    """A closed set of described fields. Unknown names are refused; instances are immutable."""

    # Forms show the names that files and `--set` take.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, field_title_generator=lambda name, _: name)

    def result_fields(self) -> dict[str, Any]:
        """JSON-ready values of the fields that can change what a stage produces (all but those marked operational).

        Of a local path the name counts: what it holds is in the stage's fingerprint, and where it lies changes no result.
        """
        values: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            extra = field.json_schema_extra
            if isinstance(extra, dict) and extra.get("operational"):
                continue
            value = getattr(self, name)
            if isinstance(value, str) and isinstance(extra, dict) and extra.get("path"):
                values[name] = _name_of(value)
                continue
            values[name] = value.result_fields() if isinstance(value, Settings) else self._json_value(name)
        return values

    def _json_value(self, name: str) -> Any:
        value = getattr(self, name)
        if isinstance(value, (list, tuple)):
            return [v.result_fields() if isinstance(v, Settings) else v for v in value]
        return self.model_dump(mode="json", include={name})[name]


def _name_of(place: str) -> str:
    """The last part of an absolute path, also behind a type (`jsonl@/data/chat`); what is none stays."""
    if Path(place).is_absolute():
        return Path(place).name
    data_type, at, folder = place.partition("@")
    return f"{data_type}@{Path(folder).name}" if at and Path(folder).is_absolute() else place


def operational(default: Any, description: str, **constraints: Any) -> Any:
    """A field that changes how a stage runs but never what it produces, so it stays out of the stage key."""
    return Field(default, description=description, json_schema_extra={"operational": True}, **constraints)


def local_path(text: str) -> str:
    """`text` as an absolute path, from the current folder and with `~` resolved: it then means the same in every process."""
    return str(Path(text).expanduser().absolute())


def drawn_as_choice(schema: dict[str, Any]) -> None:
    """For `json_schema_extra` of a union whose members a field tells apart: Prefect's form draws a choice from `anyOf` only."""
    schema["anyOf"] = schema.pop("oneOf")
