"""The key of a stage: sha256 over canonical JSON of everything that can change its result, and nothing else.

In it: the stage and its schema version, the config's result fields, the keys of its inputs, the seed, the code it can
reach in this project, the versions of the libraries that matter, and what it reads from outside the store. Not in it:
the name of the node it runs as, how it is executed, where, and when. The description that was hashed is kept beside the
artifact, so that two keys can be compared field by field.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from data_processing.errors import ConfigError
from data_processing.settings import Settings
from tasks.runtime.contract.context import ANY, Stage
from tasks.runtime.contract.registry import load_stage, module_of
from tasks.runtime.keys.closure import Code


@dataclass(frozen=True)
class StageKey:
    """A stage's key, the stage it belongs to, and the JSON description that was hashed."""

    stage: Stage[Any]
    key: str
    description: dict[str, Any]


def stage_key(
    name: str,
    config: Settings,
    input_keys: Mapping[str, str],
    seed: int,
    code: Code | None = None,
) -> StageKey:
    """Key of stage `name` (registered, or `module:attribute`) under `config`, for inputs given by their keys.

    `code` is where the code is read; by default the checkout as it is now.

    Raises `ConfigError` where the stage is unknown, the config is of another stage, or inputs are missing or unknown.
    """
    stage = load_stage(name)
    if not isinstance(config, stage.config):
        raise ConfigError(f"stage '{stage.name}': config is a {type(config).__name__}, expected {stage.config.__name__}")
    _check_inputs(stage, input_keys)
    code = code or Code()
    description = {
        "stage": stage.name,
        "schema_version": stage.schema_version,
        "config": config.result_fields(),
        "inputs": dict(input_keys),
        "seed": seed,
        "code": code.digests(module_of(name)[0]),
        "user_code": {module: _user_code(module, code) for module in stage.modules(config)},
        "libraries": code.versions((*stage.libraries, *stage.further_libraries(config))),
        "fingerprint": stage.fingerprint(config) if stage.fingerprint else None,
    }
    return StageKey(stage, hashlib.sha256(canonical_json(description).encode()).hexdigest(), description)


def _user_code(module: str, code: Code) -> dict[str, str]:
    digests = code.file_digests(module)
    if not digests:
        raise ConfigError(f"there is no module '{module}'; it must lie in the folder you start from, or be on PYTHONPATH")
    return digests


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: keys sorted, no spaces. Raises `ConfigError` for anything JSON cannot say exactly."""
    _check_json(value, "$")
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def explain_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Lines `field: old -> new` for every field in which two descriptions differ; empty when they agree."""
    before, after = flatten(old), flatten(new)
    absent = object()
    lines = []
    for field in sorted(before.keys() | after.keys()):
        a, b = before.get(field, absent), after.get(field, absent)
        if a is absent or b is absent or type(a) is not type(b) or a != b:
            lines.append(f"{field}: {_shown(a, absent)} -> {_shown(b, absent)}")
    return lines


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one level with dotted names; lists and empty mappings stay values."""
    flat: dict[str, Any] = {}
    for name, item in value.items():
        if isinstance(item, Mapping) and item:
            flat.update(flatten(item, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = item
    return flat


def _check_inputs(stage: Stage[Any], given: Iterable[str]) -> None:
    names = set(given)
    required = {name for name, needed in stage.inputs.items() if not needed.optional} - {ANY}
    if missing := sorted(required - names):
        raise ConfigError(f"stage '{stage.name}' needs inputs {missing}; it was given {sorted(names)}")
    if ANY not in stage.inputs and (unknown := sorted(names - stage.inputs.keys())):
        raise ConfigError(f"stage '{stage.name}' was given inputs {unknown}; it takes {list(stage.inputs)}")


def _check_json(value: Any, where: str) -> None:
    if isinstance(value, Mapping):
        for name, item in value.items():
            if type(name) is not str:
                raise ConfigError(f"{where}: key {name!r} is a {type(name).__name__}; only strings have one spelling in JSON")
            _check_json(item, f"{where}.{name}")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _check_json(item, f"{where}[{index}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where}: {value} is not a JSON number; use a finite one or null")
    elif value is not None and type(value) not in (str, bool, int, float):
        raise ConfigError(f"{where}: cannot fingerprint a {type(value).__name__}; turn it into JSON values first")


def _shown(value: Any, absent: object) -> str:
    if value is absent:
        return "(absent)"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
