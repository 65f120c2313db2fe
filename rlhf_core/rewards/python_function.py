"""A Python function as a reward, named by import path `module:function`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

from data_processing.errors import ConfigError
from rlhf_core.rewards.base import ScoredResponse


def load_function(path: str) -> Callable[..., Any]:
    """The function at `module:function`; raises `ConfigError` saying which part is wrong."""
    module_name, separator, name = path.partition(":")
    if not separator or not module_name or not name:
        raise ConfigError(f"rewards.function='{path}' must be module:function, for example my_rewards:brevity")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(
            f"rewards.function='{path}': module '{module_name}' does not import: {error}; it must be on PYTHONPATH"
        ) from error
    function: Callable[..., Any] | None = getattr(module, name, None)
    if not callable(function):
        known = sorted(n for n in vars(module) if callable(getattr(module, n)) and not n.startswith("_"))
        raise ConfigError(f"rewards.function='{path}': module '{module_name}' has no function '{name}'; it has {known}")
    return function


class PythonScorer:
    """Calls `function(prompts=, responses=, labels=)` once a batch: message lists, texts, and labels (str or None)."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._function = load_function(path)

    @property
    def name(self) -> str:
        """The function's own name."""
        return self._path.partition(":")[2]

    def score(self, responses: Sequence[ScoredResponse]) -> list[float]:
        """Raises `ConfigError` naming the function where it raises, or returns anything but one number a response."""
        try:
            values = self._function(
                prompts=[list(r.prompt) for r in responses],
                responses=[r.text for r in responses],
                labels=[r.label for r in responses],
            )
        except Exception as error:
            raise ConfigError(f"reward function '{self._path}' raised {type(error).__name__}: {error}") from error
        try:
            numbers = [float(value) for value in values]
        except (TypeError, ValueError) as error:
            raise ConfigError(f"reward function '{self._path}' must return a list of numbers, not {values!r:.200}") from error
        if len(numbers) != len(responses):
            raise ConfigError(f"reward function '{self._path}' returned {len(numbers)} numbers for {len(responses)} responses")
        return numbers
