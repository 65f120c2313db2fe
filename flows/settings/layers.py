"""From layers of settings to one validated `PipelineConfig`, or one clear error.

A value is looked up preset <- fields that were given <- dotted overrides. What is given is used, also where it equals a default.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import ValidationError

from data_processing.errors import ConfigError
from data_processing.settings import Settings
from data_processing.wording import did_you_mean
from flows.settings.config import PipelineConfig
from flows.settings.entries import Entry
from flows.settings.messages import validation_message
from flows.settings.yaml_values import parse_yaml

Values = dict[str, Any]
Models = tuple[type[Settings], ...]
PIPELINE, KIND = "pipeline", "kind"


def layered(
    preset: Values, sections: Mapping[str, Settings | Mapping[str, Any]] | None = None, overrides: Mapping[str, Any] | None = None
) -> PipelineConfig:
    """The configuration of a run: `preset` <- the given fields of `sections` <- dotted `overrides`.

    Raises `ConfigError` naming every wrong field, what it got and what is allowed.
    """
    values = laid_over(preset, {name: given_fields(section) for name, section in (sections or {}).items()})
    for path, value in (overrides or {}).items():
        set_dotted(values, path, value)
    return validate(values)


def validate(values: Values) -> PipelineConfig:
    """`values` as a `PipelineConfig`; `ConfigError` with one line a wrong field."""
    for path, instead in _GONE.items():
        section, _, field = path.partition(".")
        if isinstance(values.get(section), dict) and field in values[section]:
            raise ConfigError(f"{path} is no more: {instead}")
    try:
        return PipelineConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(validation_message(error, PipelineConfig)) from error


def merge(below: Values, above: Values) -> Values:
    """`above` laid over `below`: mappings field by field, everything else replaced whole. Shares no mapping with either.

    A mapping that names another kind than the one below takes nothing from it: the fields of kinds differ.
    """
    merged = {name: merge(value, {}) if isinstance(value, dict) else value for name, value in below.items()}
    for name, value in above.items():
        merged[name] = merge(_of_that_kind(merged.get(name), value), value) if isinstance(value, dict) else value
    return merged


def _of_that_kind(below: Any, above: Values) -> Values:
    """What lies below a mapping, where it is of the kind that this one names."""
    section = _mapping(below)
    return section if section.get(KIND) == above.get(KIND, section.get(KIND)) else {}


def laid_over(below: Values, above: Values) -> Values:
    """As `merge`, but an entry of the pipeline that names its stage is a new one, and takes nothing from the one below."""
    merged = merge(below, above)
    for name, entry in _mapping(above.get(PIPELINE)).items():
        if isinstance(entry, dict) and "stage" in entry:
            merged[PIPELINE][name] = merge(entry, {})
    return merged


def given_fields(settings: Settings | Mapping[str, Any]) -> Values:
    """JSON-ready fields that somebody set, nested sections field by field; defaults are left to the layers below."""
    if not isinstance(settings, Settings):
        return {name: given_fields(value) if isinstance(value, Settings) else value for name, value in settings.items()}
    given: Values = {}
    for name, field in type(settings).model_fields.items():
        # The kind says which fields the others are.
        if name in settings.model_fields_set or (name == KIND and get_origin(field.annotation) is Literal):
            value = getattr(settings, name)
            given[name] = (
                given_fields(value) if isinstance(value, Settings) else settings.model_dump(mode="json", include={name})[name]
            )
    return given | dict(settings.model_extra or {})


def as_overrides(values: Values, models: Models = (PipelineConfig,), prefix: str = "") -> Values:
    """Nested values, as read from a file, by dotted path; unknown names stay in, for `set_dotted` to refuse."""
    flat: Values = {}
    for name, value in values.items():
        sections = _fields(models).get(str(name), ())
        if sections and isinstance(value, dict):
            flat |= as_overrides(value, sections, f"{prefix}{name}.")
        elif f"{prefix}{name}" == PIPELINE and isinstance(value, dict):
            flat |= {f"{PIPELINE}.{entry}": given for entry, given in value.items()}
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def parse_assignments(assignments: Iterable[str]) -> Values:
    """`["a.b=c", ...]` as `{"a.b": value}`, the values read as YAML; `ConfigError` where one is no assignment."""
    values: Values = {}
    for text in assignments:
        path, equals, value = text.partition("=")
        if not equals or not path.strip():
            raise ConfigError(f"--set: got '{text}'; expected section.field=value, for example online.kl_coef=0.02")
        try:
            values[path.strip()] = parse_yaml(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {path}: {value!r} is not a YAML value: {error}") from error
    return values


def set_dotted(values: Values, path: str, value: Any) -> None:
    """Set the field at dotted `path`, in place; `ConfigError` with suggestions where there is no such field."""
    names = path.split(".")
    if names[0] == PIPELINE and len(names) > 1:
        _set_in_entry(values, path, names[1:], value)
        return
    models: Models = (PipelineConfig,)
    for depth, name in enumerate(names):
        where = ".".join(names[:depth])
        if not models:
            raise ConfigError(f"{path}: '{where}' has no fields below it; set it whole, as in --set '{where}=...'")
        fields = _fields(models)
        if name not in fields and f"{where}.{name}" not in _GONE:
            raise ConfigError(_unknown_path(path, name, where, fields))
        if depth < len(names) - 1:
            models = fields.get(name, ())
            values = _section(values, name)
    values[names[-1]] = value


def set_nested(values: Values, path: str, value: Any) -> None:
    """Set `values[a][b]` for path "a.b", in place, making mappings on the way; what is checked is checked by the model."""
    *sections, last = path.split(".")
    for name in sections:
        values = _section(values, name)
    values[last] = value


def dotted_paths(models: Models = (PipelineConfig,), prefix: str = "") -> Iterator[str]:
    """Every path that `set_dotted` accepts, but for those of single entries."""
    for name, sections in _fields(models).items():
        yield prefix + name
        if sections:
            yield from dotted_paths(sections, f"{prefix}{name}.")


def _set_in_entry(values: Values, path: str, names: list[str], value: Any) -> None:
    """`pipeline.ENTRY[.FIELD[.PATH]]`: the entry whole (a mapping is laid over the one that is there), or a field of it."""
    entry, *rest = names
    if not rest:
        values |= laid_over(values, {PIPELINE: {entry: value}})
        return
    if rest[0] in Entry.model_fields and rest[0] not in ("set", "each") and len(rest) > 1:
        raise ConfigError(f"{path}: '{PIPELINE}.{entry}.{rest[0]}' has no fields below it; set it whole")
    within = _section(_section(values, PIPELINE), entry)
    if len(rest) == 1:
        within[rest[0]] = value
    elif rest[0] == "each":  # its keys are dotted themselves
        _section(within, "each")[".".join(rest[1:])] = value
    else:
        set_nested(within, ".".join(rest), value)


def _mapping(value: Any) -> Values:
    return value if isinstance(value, dict) else {}


def _section(values: Values, name: str) -> Values:
    if not isinstance(values.get(name), dict):
        # A name alone stands for a kind.
        values[name] = {KIND: values[name]} if isinstance(values.get(name), str) else {}
    section: Values = values[name]
    return section


def _fields(models: Models) -> dict[str, Models]:
    """Field name -> the models of the section it holds: none where it holds a value, several where its kind says which."""
    found: dict[str, Models] = {}
    for model in models:
        for name, field in model.model_fields.items():
            found[name] = (*found.get(name, ()), *_section_models(field.annotation))
    return found


def _section_models(annotation: Any) -> Models:
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(model for part in get_args(annotation) for model in _section_models(part))
    if get_origin(annotation) is Annotated:
        return _section_models(get_args(annotation)[0])
    return (annotation,) if isinstance(annotation, type) and issubclass(annotation, Settings) else ()


def _unknown_path(path: str, name: str, where: str, fields: Iterable[str]) -> str:
    same_name = [p for p in dotted_paths() if p.split(".")[-1] == name]
    hint = f"did you mean {' or '.join(repr(p) for p in same_name[:4])}? " if same_name else did_you_mean(name, list(fields))
    place = f"'{where}'" if where else "the configuration"
    return f"{path}: {place} has no field '{name}'; {hint}allowed are {', '.join(fields)}"


# Settings of earlier versions, and what to write instead.
_GONE = {"run.skip": "take an entry out with null, as in --set pipeline.preference=null"}
