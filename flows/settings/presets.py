"""Files of settings: the presets that ship with alignflow, those of the home, and any path; each may extend another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import deployments.presets
from data_processing.errors import ConfigError
from data_processing.settings import Settings
from data_processing.wording import did_you_mean
from flows.settings.config import PipelineConfig
from flows.settings.entries import Entries
from flows.settings.layers import PIPELINE, Values, given_fields, laid_over, layered
from flows.settings.yaml_values import parse_yaml

DEFAULT = "quickstart"
_EXTENDS = "extends"
# Sections of stages that only entries of the pipeline ask for.
_TRAINING = ("sft", "distill", "reward_model", "preference", "iterative", "online")


@dataclass(frozen=True)
class PresetFile:
    """A preset that can be asked for by name, and the first line of its opening comment."""

    name: str
    path: Path
    line: str


def read_preset(name: str, home_presets: Path | None = None) -> Values:
    """The settings of a preset: what it extends, and its own over that. `name` is that of a preset, or the path of a file.

    Raises `ConfigError` where there is no such preset, where a file is not readable, and where presets extend each other in a
    circle.
    """
    return _read(name, home_presets, None, ())


def resolve(
    preset: str = DEFAULT,
    sections: Mapping[str, Settings] | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    pipeline: Entries | None = None,
    below: Values | None = None,
    home_presets: Path | None = None,
) -> PipelineConfig:
    """The configuration of a run: the preset <- given fields of `sections` <- dotted `overrides`.

    `pipeline`, where it has entries, takes the place of the preset's; `below`, where it has sections, that of the whole preset.
    Raises `ConfigError` naming every wrong field.
    """
    values = dict(below) if below else read_preset(preset, home_presets)
    if pipeline:
        values[PIPELINE] = {name: entry and given_fields(entry) for name, entry in pipeline.items()}
    config = layered(values, sections, overrides)
    idle = [name for name in _TRAINING if name in values]
    if not config.pipeline and PIPELINE not in values and idle:
        raise ConfigError(
            f"pipeline: preset '{preset_name(preset)}' has settings for {', '.join(idle)} and no entries, so nothing would be trained; write "
            f"which there are, as in pipeline: {{{idle[0]}: {{stage: {idle[0]}}}}}, or {_EXTENDS}: a preset that has them"
        )
    return config


def preset_name(preset: str) -> str:
    """How people call a preset: its name, or that of its file without the ending."""
    return Path(preset).stem if preset.endswith((".yaml", ".yml")) else preset


def known_presets(home_presets: Path | None = None) -> dict[str, PresetFile]:
    """Presets by name; one in the home hides a shipped one of the same name."""
    folders = [Path(place) for place in deployments.presets.__path__] + ([home_presets] if home_presets else [])
    return {
        path.stem: PresetFile(path.stem, path, _first_line(path)) for folder in folders for path in sorted(folder.glob("*.yaml"))
    }


def read_values(path: Path) -> Values:
    """The mapping in a YAML file; `ConfigError` where it is missing, unreadable or no mapping, or names a key twice."""
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"config: no file at {path}; give the path of a YAML file with sections like 'online:'") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"config: {path} is not readable YAML: {_line(error)}; correct it") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(
            f"config: {path} holds a {type(values).__name__}; expected sections: {', '.join(PipelineConfig.model_fields)}"
        )
    return values


def _read(name: str, home_presets: Path | None, beside: Path | None, above: tuple[Path, ...]) -> Values:
    path = _path_of(name, home_presets, beside)
    if path in above:
        circle = " -> ".join(str(place) for place in (*above[above.index(path) :], path))
        raise ConfigError(f"extends: presets extend each other in a circle: {circle}; take one 'extends' out")
    values = read_values(path)
    below = values.pop(_EXTENDS, None)
    if below is None:
        return values
    if not isinstance(below, str):
        raise ConfigError(f"extends: {path} has {below!r}; give the name of one preset, or the path of a file")
    return laid_over(_read(below, home_presets, path.parent, (*above, path)), values)


def _path_of(name: str, home_presets: Path | None, beside: Path | None) -> Path:
    """The file of a preset; a path in a file is meant from that file's folder (`beside`), a typed one from the current."""
    known = known_presets(home_presets)
    if name in known:
        return known[name].path
    if name.endswith((".yaml", ".yml")) or "/" in name:
        path = ((beside or Path()) / Path(name).expanduser()).resolve()
        if path.is_file():
            return path
        raise ConfigError(f"preset: no file at {path}; give the name of a preset ({', '.join(known)}) or the path of a YAML file")
    where = f" (shipped, or in {home_presets})" if home_presets else ""
    raise ConfigError(
        f"preset: got '{name}'; {did_you_mean(name, list(known))}allowed are {', '.join(known)}{where}, or the path of a YAML file"
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _first_line(path: Path) -> str:
    with path.open(encoding="utf-8", errors="replace") as stream:
        first = stream.readline()
    return first.removeprefix("#").strip() if first.startswith("#") else ""
