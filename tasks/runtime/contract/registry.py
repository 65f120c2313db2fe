"""From the name of a stage to the stage. Modules are imported when a stage is asked for, not before."""

from __future__ import annotations

import importlib
from typing import Any

from data_processing.errors import ConfigError
from data_processing.wording import did_you_mean
from tasks.runtime.contract.context import Stage

STAGES = (
    "base_model",
    "prepare_data",
    "sft",
    "reward_model",
    "preference",
    "online",
    "sample",
    "iterative",
    "distill",
    "merge",
    "vr_cli_baseline",
    "convert",
    "evaluate",
    "compare",
)


def module_of(name: str) -> tuple[str, str]:
    """Module and attribute that hold stage `name`: a registered name, or an import path `module:attribute`."""
    if ":" in name:
        module, attribute = name.split(":", 1)
        return module, attribute
    if name not in STAGES:
        hint = did_you_mean(name, STAGES)
        raise ConfigError(f"unknown stage '{name}': {hint}known are {', '.join(STAGES)}, or an import path module:attribute")
    return f"tasks.{name}", "STAGE"


def load_stage(name: str) -> Stage[Any]:
    """Import and return the stage; `ConfigError` where the name, the module or the attribute is wrong."""
    module_name, attribute = module_of(name)
    try:
        stage = getattr(importlib.import_module(module_name), attribute)
    except (ModuleNotFoundError, AttributeError) as error:
        raise ConfigError(f"stage '{name}': cannot load {module_name}:{attribute}: {error}") from error
    except Exception as error:  # what a user's module raises, or a name that is none
        if ":" not in name:
            raise
        raise ConfigError(
            f"stage '{name}': importing {module_name or 'no module'} raised {type(error).__name__}: {error}; correct the name, or that module"
        ) from error
    if not isinstance(stage, Stage):
        raise ConfigError(f"stage '{name}': {module_name}:{attribute} is a {type(stage).__name__}, expected a Stage")
    return stage


def makers_of(role: str) -> list[str]:
    """The registered stages that entries may have and whose results have a role."""
    found = [name for name in STAGES if load_stage(name).makes == role]
    return [name for name in found if name != "convert"]
