"""What a reward function may return for each response: a number, None, or a mapping of numbers of which one counts."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any

from data_processing.errors import ConfigError

# The key whose number is the reward; the others are metrics.
COUNTING = ("score", "reward")


def read_returned(path: str, values: Any, n_responses: int) -> tuple[list[float | None], dict[str, list[float | None]]]:
    """The reward of each response, and further numbers by name (None where a response has none), in order.

    Raises `ConfigError` naming the function at `path` where it returned anything else.
    """
    try:
        if isinstance(values, (str, bytes, Mapping)):
            raise TypeError(f"a {type(values).__name__} is no list")
        read = [_read(value) for value in values]
    except Exception as error:  # asked for a number, an object of somebody's may raise anything
        raise ConfigError(
            f"reward function '{path}' must return a list of numbers, not {_shown(values)}: one a response, None where it does not "
            f"apply, NaN where it failed on this one; or a dict with '{COUNTING[0]}' or '{COUNTING[1]}' ({error})"
        ) from error
    if len(read) != n_responses:
        raise ConfigError(
            f"reward function '{path}' returned {len(read)} numbers for {n_responses} responses; return one for each, in order"
        )
    names = dict.fromkeys(name for _, others in read for name in others)
    return [number for number, _ in read], {name: [others.get(name) for _, others in read] for name in names}


def _shown(values: Any) -> str:
    """The values for messages, in a line."""
    try:
        return " ".join(f"{values!r:.200}".split())
    except Exception:  # as above
        return f"a {type(values).__name__}"


def _read(value: Any) -> tuple[float | None, dict[str, float | None]]:
    if not isinstance(value, Mapping):
        return _number(value), {}
    found = [name for name in COUNTING if name in value]
    if len(found) != 1:
        raise ValueError(f"a dict with the keys {list(value)} has {'both' if found else 'neither'}")
    others = {str(name): float(other) for name, other in value.items() if name != found[0] and isinstance(other, Real)}
    return _number(value[found[0]]), dict(others)


def _number(value: Any) -> float | None:
    if isinstance(value, (str, bytes)):
        raise TypeError(f"{value!r:.80} is a text")
    return None if value is None else float(value)
