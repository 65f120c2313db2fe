"""Where the module of an environment comes from: an installed library, or the user's own code."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sysconfig
from pathlib import Path


def environment_module(name: str) -> str:
    """The module with an environment of the library verifiers, which knows it as `name`: "owner/my-env" is in my_env."""
    return name.rpartition("/")[2].replace("-", "_")


def distribution_of(module: str) -> str | None:
    """The installed distribution that has `module`; None where that is the user's own, or not there."""
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    found = [] if spec is None else [*(spec.submodule_search_locations or ()), spec.origin or ""]
    places = [Path(place) for place in found if place]
    libraries = [Path(sysconfig.get_path(kind)) for kind in ("purelib", "platlib")]
    if not any(place.is_relative_to(library) for place in places for library in libraries):
        return None
    return next(iter(importlib.metadata.packages_distributions().get(module, ())), None)
