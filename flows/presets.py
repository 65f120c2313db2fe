"""From a preset, explicit sections and dotted overrides to one validated `PipelineConfig`, or one clear error.

A value is looked up preset <- explicit fields (those that differ from their default) <- dotted overrides.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import ValidationError

import deployments.presets
from data_processing.errors import ConfigError
from data_processing.settings import Settings
from flows.config import PipelineConfig
from flows.messages import did_you_mean, validation_message

Values = dict[str, Any]


class _JsonLoader(yaml.SafeLoader):
    """YAML that gives only values that JSON has: a date stays the text that it is, as the Prefect form sends it."""


_JsonLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class Preset(str, Enum):
    """The presets that ship with alignflow, files of deployments/presets/."""

    quickstart = "quickstart"
    tiny = "tiny"


def find_preset(name: str) -> Preset:
    """The preset called `name`; `ConfigError` with the known names otherwise."""
    known = [preset.value for preset in Preset]
    if name not in known:
        raise ConfigError(f"preset: got '{name}'; {did_you_mean(name, known)}allowed are {', '.join(known)}")
    return Preset(name)


def resolve(
    preset: Preset,
    sections: Mapping[str, Settings] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> PipelineConfig:
    """The configuration of a run: preset <- fields of `sections` that differ from their default <- dotted `overrides`.

    Raises `ConfigError` naming every wrong field, what it got and what is allowed.
    """
    values = read_values(_preset_file(preset))
    for name, section in (sections or {}).items():
        values = merge(values, {name: changed_fields(section)})
    for path, value in (overrides or {}).items():
        set_dotted(values, path, value)
    return validate(values)


def validate(values: Values) -> PipelineConfig:
    """`values` as a `PipelineConfig`; `ConfigError` with one line a wrong field."""
    try:
        return PipelineConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(validation_message(error, PipelineConfig)) from error


def read_values(path: Path) -> Values:
    """The mapping in a YAML file; `ConfigError` where it is missing, unreadable or no mapping."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _JsonLoader)
    except FileNotFoundError as error:
        raise ConfigError(f"config: no file at {path}; give the path of a YAML file with sections like 'online:'") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"config: {path} is not readable YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(
            f"config: {path} holds a {type(values).__name__}; expected sections: {', '.join(_fields(PipelineConfig))}"
        )
    return values


def as_overrides(values: Values, model: type[Settings] | None = PipelineConfig, prefix: str = "") -> Values:
    """Nested values, as read from a file, by dotted path; unknown names stay in, for `set_dotted` to refuse."""
    flat: Values = {}
    for name, value in values.items():
        section = _fields(model).get(str(name)) if model else None
        if section is not None and isinstance(value, dict):
            flat |= as_overrides(value, section, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def merge(below: Values, above: Values) -> Values:
    """`above` laid over `below`: mappings field by field, everything else replaced whole."""
    merged = dict(below)
    for name, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = merge(merged[name], value) if both else value
    return merged


def changed_fields(settings: Settings) -> Values:
    """JSON-ready fields that differ from their default, nested sections field by field."""
    changed: Values = {}
    for name, field in type(settings).model_fields.items():
        value, default = getattr(settings, name), field.get_default(call_default_factory=True)
        if value == default:
            continue
        same_section = isinstance(value, Settings) and isinstance(default, type(value))
        changed[name] = changed_fields(value) if same_section else settings.model_dump(mode="json", include={name})[name]
    return changed


def parse_assignments(assignments: Iterable[str]) -> Values:
    """`["a.b=c", ...]` as `{"a.b": value}`, the values read as YAML; `ConfigError` where one is no assignment."""
    values: Values = {}
    for text in assignments:
        path, equals, value = text.partition("=")
        if not equals or not path.strip():
            raise ConfigError(f"--set: got '{text}'; expected section.field=value, for example online.kl_coef=0.02")
        try:
            values[path.strip()] = yaml.load(value, _JsonLoader)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {path}: {value!r} is not a YAML value: {error}") from error
    return values


def set_dotted(values: Values, path: str, value: Any) -> None:
    """Set the field at dotted `path`, in place; `ConfigError` with suggestions where there is no such field."""
    names = path.split(".")
    model: type[Settings] | None = PipelineConfig
    for depth, name in enumerate(names):
        where = ".".join(names[:depth])
        if model is None:
            raise ConfigError(f"{path}: '{where}' has no fields below it; set it whole, as in --set '{where}=...'")
        fields = _fields(model)
        if name not in fields:
            raise ConfigError(_unknown_path(path, name, where, fields))
        if depth < len(names) - 1:
            model = fields[name]
            values = _section(values, name)
    values[names[-1]] = value


def dotted_paths(model: type[Settings] = PipelineConfig, prefix: str = "") -> Iterator[str]:
    """Every path that `set_dotted` accepts."""
    for name, section in _fields(model).items():
        yield prefix + name
        if section is not None:
            yield from dotted_paths(section, f"{prefix}{name}.")


def _preset_file(preset: Preset) -> Path:
    return Path(next(iter(deployments.presets.__path__))) / f"{preset.value}.yaml"


def _section(values: Values, name: str) -> Values:
    if not isinstance(values.get(name), dict):
        values[name] = {}
    section: Values = values[name]
    return section


def _fields(model: type[Settings]) -> dict[str, type[Settings] | None]:
    """Field name -> the model of the section it holds, None where it holds a value."""
    return {name: _section_model(field.annotation) for name, field in model.model_fields.items()}


def _section_model(annotation: Any) -> type[Settings] | None:
    if get_origin(annotation) in (Union, types.UnionType):
        return next((m for m in map(_section_model, get_args(annotation)) if m), None)
    return annotation if isinstance(annotation, type) and issubclass(annotation, Settings) else None


def _unknown_path(path: str, name: str, where: str, fields: Iterable[str]) -> str:
    same_name = [p for p in dotted_paths() if p.split(".")[-1] == name]
    hint = f"did you mean {' or '.join(repr(p) for p in same_name[:4])}? " if same_name else did_you_mean(name, list(fields))
    place = f"'{where}'" if where else "the configuration"
    return f"{path}: {place} has no field '{name}'; {hint}allowed are {', '.join(fields)}"
