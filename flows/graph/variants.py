"""Variants of an entry: one a combination of its sweep's values, of what its inputs vary in, and of its rounds.

A variant is called `ENTRY@FIELD=VALUE,...`. What an entry inherits from the entry E it is made from is written `E.FIELD=VALUE`.
Whoever names an entry means every variant of its last round; whoever names `ENTRY@FIELD=VALUE` means those that have this value.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import yaml

from data_processing.errors import ConfigError
from data_processing.wording import did_you_mean

SEED, ROUND = "seed", "round"
_PLAIN = re.compile(r"[\w.+-]+")

# What varies, as (entry whose sweep it is, field), and the text of the value.
Axes = Mapping[tuple[str, str], str]


@dataclass(frozen=True)
class Variant:
    """A node of an entry. `result` is the node that others take: its own, or the conversion that follows it.

    `seed` is None for that of the run. All rounds but the last have `is_last` False.
    """

    entry: str
    node: str
    result: str
    axes: Axes
    seed: int | None = None
    round: int | None = None
    is_last: bool = True

    @property
    def labels(self) -> dict[str, str]:
        """What it varies in, as people write it."""
        rounds = {} if self.round is None else {ROUND: str(self.round)}
        return labels(self.entry, self.axes) | rounds

    @property
    def family(self) -> str:
        """The name that it shares with the variants that differ from it in their seed only."""
        axes = {axis: value for axis, value in self.axes.items() if axis[1] != SEED}
        rounds = {} if self.round is None else {ROUND: str(self.round)}
        return name_of(self.entry, labels(self.entry, axes) | rounds)


@dataclass(frozen=True)
class Reference:
    """What a user wrote to name an entry, or some of its variants."""

    text: str
    entry: str
    values: Mapping[str, str]

    @classmethod
    def read(cls, text: str, place: str) -> Reference:
        """`ENTRY` or `ENTRY@FIELD=VALUE,...`; raises `ConfigError` naming `place`."""
        entry, at, rest = text.partition("@")
        values: dict[str, str] = {}
        for part in rest.split(",") if at else ():
            field, equals, value = part.partition("=")
            if not field or not equals:
                raise ConfigError(
                    f"{place}: got '{text}'; write an entry's name, or ENTRY@FIELD=VALUE,... for some of its variants"
                )
            values[field] = text_of(yaml.safe_load(value), value)
        return cls(text, entry, values)

    def choose(self, variants: Sequence[Variant], place: str) -> list[Variant]:
        """Those of the entry's variants that are meant; raises `ConfigError` naming `place` where there is none."""
        last = ROUND not in self.values
        chosen = [v for v in variants if (v.is_last or not last) and self.values.items() <= v.labels.items()]
        if not chosen:
            known = [v.node for v in variants]
            raise ConfigError(
                f"{place}: no variant is called '{self.text}'; {did_you_mean(self.text, known)}there are {', '.join(known)}"
            )
        return chosen

    def open_axes(self, variant: Variant) -> dict[tuple[str, str], str]:
        """What of `variant` was left open: what a follower of all of them varies in too."""
        written = dict(zip(variant.axes, labels(variant.entry, variant.axes), strict=True))
        return {axis: value for axis, value in variant.axes.items() if written[axis] not in self.values}


def labels(entry: str, axes: Axes) -> dict[str, str]:
    """`axes` as people write them for `entry`: its own fields bare, those of others after their entry's name."""
    return {field if origin == entry else f"{origin}.{field}": value for (origin, field), value in axes.items()}


def name_of(entry: str, written: Mapping[str, str]) -> str:
    """The name of a variant, from what `labels` gave."""
    return f"{entry}@{','.join(f'{label}={value}' for label, value in written.items())}" if written else entry


def points(entry: str, each: Mapping[str, Sequence[Any]]) -> Iterator[tuple[dict[tuple[str, str], str], dict[str, Any]]]:
    """Every combination of a sweep's values: as axes, and as values by field. One empty combination without a sweep."""
    for values in product(*(enumerate(each[field], 1) for field in each)):
        axes = {(entry, field): text_of(value, f"#{number}") for field, (number, value) in zip(each, values, strict=True)}
        yield axes, {field: value for field, (_, value) in zip(each, values, strict=True)}


def joined(parts: Iterable[Mapping[tuple[str, str], str]]) -> dict[tuple[str, str], str] | None:
    """All axes together; None where two parts have another value of the same."""
    together: dict[tuple[str, str], str] = {}
    for part in parts:
        if any(together.get(axis, value) != value for axis, value in part.items()):
            return None
        together |= part
    return together


def text_of(value: Any, otherwise: str) -> str:
    """A value as it stands in names: plain words and numbers as they are, else `otherwise`."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text if _PLAIN.fullmatch(text) else otherwise
