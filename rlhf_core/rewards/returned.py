"""What a reward function may return for each response: a number, None, or a mapping of numbers of which one counts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from data_processing.errors import ConfigError

# The key whose number is the reward; the others are metrics.
COUNTING = ("score", "reward")
# The key of a list with a reward for each token, on top of that.
TOKENS = "token_rewards"


@dataclass(frozen=True, slots=True)
class Returned:
    """`rewards` of the responses, in order; further numbers by name, None where a response has none; rewards of single tokens."""

    rewards: list[float | None]
    metrics: dict[str, list[float | None]]
    token_rewards: list[list[float] | None]


def read_returned(path: str, values: Any, lengths_tokens: Sequence[int]) -> Returned:
    """What the function at `path` returned for responses of these lengths; `ConfigError` names it where that is anything else."""
    try:
        if isinstance(values, (str, bytes, Mapping)):
            raise TypeError(f"a {type(values).__name__} is no list")
        read = [_read(value) for value in values]
    except Exception as error:  # asked for a number, an object of somebody's may raise anything
        raise ConfigError(
            f"reward function '{path}' must return a list of numbers, not {_shown(values)}: one a response, None where it does not "
            f"apply, NaN where it failed on this one; or a dict with '{COUNTING[0]}' or '{COUNTING[1]}' ({error})"
        ) from error
    if len(read) != len(lengths_tokens):
        raise ConfigError(
            f"reward function '{path}' returned {len(read)} numbers for {len(lengths_tokens)} responses; return one for each, in order"
        )
    for number, ((_, _, tokens), length) in enumerate(zip(read, lengths_tokens, strict=True)):
        if tokens is not None and (len(tokens) != length or not all(map(math.isfinite, tokens))):
            raise ConfigError(
                f"reward function '{path}': '{TOKENS}' of response {number} are {len(tokens)} values for {length} tokens; give a "
                "finite number for each of completion_ids, or leave the key out"
            )
    names = dict.fromkeys(name for _, others, _ in read for name in others)
    metrics = {name: [others.get(name) for _, others, _ in read] for name in names}
    return Returned([number for number, _, _ in read], metrics, [tokens for _, _, tokens in read])


def _shown(values: Any) -> str:
    """The values for messages, in a line."""
    try:
        return " ".join(f"{values!r:.200}".split())
    except Exception:  # as above
        return f"a {type(values).__name__}"


def _read(value: Any) -> tuple[float | None, dict[str, float | None], list[float] | None]:
    if not isinstance(value, Mapping):
        return _number(value), {}, None
    found = [name for name in COUNTING if name in value]
    if len(found) != 1:
        raise ValueError(f"a dict with the keys {list(value)} has {'both' if found else 'neither'}")
    others = {str(name): float(other) for name, other in value.items() if name != found[0] and isinstance(other, Real)}
    tokens = value.get(TOKENS)
    return _number(value[found[0]]), dict(others), None if tokens is None else [float(token) for token in tokens]


def _number(value: Any) -> float | None:
    if isinstance(value, (str, bytes)):
        raise TypeError(f"{value!r:.80} is a text")
    return None if value is None else float(value)
