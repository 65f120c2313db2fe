"""A Python function as a reward, named by import path `module:function`."""

from __future__ import annotations

import importlib
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from data_processing.errors import ConfigError
from rlhf_core.rewards.base import ScoredResponse
from rlhf_core.rewards.errors import TransientRewardError, is_transient


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

    def score(self, responses: Sequence[ScoredResponse]) -> list[float | None]:
        """What the function returned, one value a response; see `Scorer.score`.

        Raises `TransientRewardError` where it raised what `is_transient` says may work at the next try. Anything else that it
        raises or returns is `ConfigError`, naming the function and the line of it.
        """
        values = self._call(responses)
        try:
            numbers = [_number(value) for value in values]
        except (TypeError, ValueError, OverflowError) as error:
            raise ConfigError(
                f"reward function '{self._path}' must return a list of numbers, not {values!r:.200}: one a response, None where "
                "it does not apply, NaN where it failed on this one"
            ) from error
        if len(numbers) != len(responses):
            raise ConfigError(f"reward function '{self._path}' returned {len(numbers)} numbers for {len(responses)} responses")
        return numbers

    def _call(self, responses: Sequence[ScoredResponse]) -> Any:
        try:
            values = self._function(
                prompts=[list(r.prompt) for r in responses],
                responses=[r.text for r in responses],
                labels=[r.label for r in responses],
            )
            return list(values) if isinstance(values, Iterator) else values
        except MemoryError:
            raise
        except (Exception, SystemExit) as error:
            where = f"raised {type(error).__name__}: {error}{_last_user_line(error)}, scoring {len(responses)} responses"
            message = f"reward function '{self._path}' {where}"
            if is_transient(error):
                raise TransientRewardError(message) from error
            raise ConfigError(
                f"{message}; it is not called again. Where the next try may work it should raise "
                "rlhf_core.rewards.errors.TransientRewardError, where one response is at fault return NaN for it"
            ) from error


def _number(value: Any) -> float | None:
    if isinstance(value, (str, bytes)):
        raise TypeError(f"{value!r} is a text")
    return None if value is None else float(value)


def _last_user_line(error: BaseException) -> str:
    """Where it happened: the innermost line that belongs to no library, the first being ours."""
    libraries = tuple(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    frames = traceback.extract_tb(error.__traceback__)[1:]
    own = [frame for frame in frames if not frame.filename.startswith((*libraries, "<"))] or frames
    return f" (line {own[-1].lineno} of {own[-1].filename}: {own[-1].line})" if own else ""
