"""A Python function as a reward, named by import path `module:function`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from data_processing.errors import ConfigError
from rlhf_core.imported import RAISED, awaited, imported, last_user_line
from rlhf_core.rewards.arguments import Signature
from rlhf_core.rewards.base import ScoredResponse, Scores
from rlhf_core.rewards.errors import TransientRewardError, is_transient
from rlhf_core.rewards.returned import read_returned
from rlhf_core.rewards.time_limit import TimeLimitError, time_limit
from rlhf_core.settings.rewards.functions import PythonReward

if TYPE_CHECKING:
    from rlhf_core.rewards.build import Around

# What a function raises that is given texts and looks for messages in them.
_WRONG_FORM = (TypeError, AttributeError, KeyError, IndexError)


def load_function(path: str) -> Callable[..., Any]:
    """The function at `module:function`; raises `ConfigError` saying which part is wrong."""
    function: Callable[..., Any] | None = imported(path, "rewards.function", "my_rewards:brevity")
    if not callable(function):
        module_name, _, name = path.partition(":")
        module = importlib.import_module(module_name)
        known = sorted(n for n in vars(module) if callable(getattr(module, n)) and not n.startswith("_"))
        raise ConfigError(
            f"rewards.function='{path}': module '{module_name}' has no function '{name}'; name one that it has: {known}"
        )
    return function


class PythonScorer:
    """Calls a function once a batch, with what it asks for by name (`rlhf_core.rewards.arguments`); it may be async.

    A call that takes longer than `limit_s` is given up.
    """

    def __init__(self, path: str, limit_s: float | None = None) -> None:
        self._path = path
        self._limit_s = limit_s
        self._function = load_function(path)
        self._signature = Signature.of(self._function, path)
        self._as_text: bool | None = None

    @property
    def name(self) -> str:
        """The function's own name."""
        return self._path.partition(":")[2]

    def score(self, responses: Sequence[ScoredResponse]) -> Scores:
        """What the function returned, one value a response; see `Scorer.score`.

        Raises `TransientRewardError` where it raised what `is_transient` says may work at the next try. Anything else that it
        raises or returns is `ConfigError`, naming the function and the line of it, and so is a call that does not end.
        """
        values = self._values(responses)
        returned = read_returned(self._path, values, [len(r.response_ids) for r in responses])
        return Scores(returned.rewards, returned.metrics, returned.token_rewards)

    def _values(self, responses: Sequence[ScoredResponse]) -> Any:
        try:
            with time_limit(self._limit_s):
                return self._in_its_form(responses)
        except MemoryError:
            raise
        except TimeLimitError as error:
            raise ConfigError(
                f"reward function '{self._path}' did not return within {self._limit_s:g} s{last_user_line(error, _HERE)}, scoring "
                f"{len(responses)} responses; give what it waits for a time-out of its own (a TimeoutError is tried again), or, "
                "where it needs longer, raise online.stall_after_s"
            ) from error
        except RAISED as error:
            where = f"raised {type(error).__name__}: {error}{last_user_line(error, _HERE)}, scoring {len(responses)} responses"
            message = f"reward function '{self._path}' {where}"
            if is_transient(error):
                raise TransientRewardError(message) from error
            raise ConfigError(
                f"{message}; it is not called again. Where the next try may work it should raise "
                "rlhf_core.rewards.errors.TransientRewardError, where one response is at fault return NaN for it"
            ) from error

    def _in_its_form(self, responses: Sequence[ScoredResponse]) -> Any:
        """The call, with texts or with messages: what the function takes is seen once, at the first call."""
        if self._as_text is not None or not self._signature.may_take_text(responses):
            return self._call(responses, as_text=self._as_text or False)
        try:
            values = self._call(responses, as_text=True)
        except _WRONG_FORM as error:
            try:
                values = self._call(responses, as_text=False)
            except _WRONG_FORM:
                raise error from None
            self._as_text = False
        else:
            self._as_text = True
        return values

    def _call(self, responses: Sequence[ScoredResponse], *, as_text: bool) -> Any:
        values = awaited(self._function(**self._signature.arguments(responses, as_text=as_text)))
        return list(values) if isinstance(values, Iterator) else values


def build(source: PythonReward, around: Around) -> PythonScorer:
    """From settings."""
    return PythonScorer(source.function, around.limit_s)


_HERE = __file__.rpartition("/")[0] + "/"
