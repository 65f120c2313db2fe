"""What the rows of all methods have in common: a name finds one, functions have import paths, and some settings have few readers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from data_processing.errors import ConfigError
from data_processing.settings import Settings
from data_processing.wording import did_you_mean
from rlhf_core.imported import imported

OWN = "own"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A method of training: `about` is its line in lists, `settings` are those that it reads and some other method does not.

    A setting is named as in files, dotted. `defaults` are what it takes for settings that are null. `positive` names those of them
    that it needs above 0.
    """

    about: str
    defaults: Mapping[str, float] = field(default_factory=dict)
    positive: tuple[str, ...] = ()

    @property
    def settings(self) -> frozenset[str]:
        """What it reads, of the settings that some method does not read."""
        raise NotImplementedError


RowT = TypeVar("RowT", bound=Row)
SettingsT = TypeVar("SettingsT", bound=Settings)


def row(table: Mapping[str, RowT], kind: type[RowT], name: str) -> RowT:
    """The row called `name`, or the one at the import path `module:NAME`; `ValueError` says what there is."""
    if name in table:
        return table[name]
    if ":" not in name:
        known = ", ".join(map(repr, table))
        raise ValueError(
            f"'{name}' is no method: {did_you_mean(name, table)}known are {known}, or the import path of your own, module:NAME"
        )
    try:
        found = imported(name, "method", "my_methods:MINE")
    except ConfigError as error:
        raise ValueError(str(error)) from error
    if not isinstance(found, kind):
        raise ValueError(f"method='{name}' is a {type(found).__name__}, expected a {kind.__name__}; see docs/extending.md")
    return found


def modules_of(*names: str) -> list[str]:
    """The user's modules that these names and import paths mention: none for ours."""
    paths = (name for name in names if ":" in name)
    return [module for module in (path.partition(":")[0] for path in paths) if not module.startswith("rlhf_core.")]


def value_at(settings: Settings, path: str) -> Any:
    """The value of a dotted setting; None where `own` has none of that name."""
    value: Any = settings
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else getattr(value, name)
    return value


def unread(settings: Settings, table: Mapping[str, RowT], chosen: RowT) -> dict[str, Any]:
    """The settings that have another value than their default, and that some method reads and the chosen one does not."""
    plain = type(settings).model_construct()
    some = {path for other in table.values() for path in other.settings} | {f"{OWN}.{name}" for name in value_at(settings, OWN)}
    values = {path: value_at(settings, path) for path in sorted(some - chosen.settings)}
    return {path: value for path, value in values.items() if value != value_at(plain, path)}


def without(settings: SettingsT, paths: Iterable[str]) -> SettingsT:
    """The same with these dotted settings at their defaults: what is not read is no part of what a result was made with."""
    plain = type(settings).model_construct()
    for path in paths:
        section, _, name = path.partition(".")
        value = getattr(settings, section)
        if not name:
            changed = getattr(plain, section)
        elif isinstance(value, dict):
            changed = {key: kept for key, kept in value.items() if key != name}
        else:
            changed = without(value, [name])
        settings = settings.model_copy(update={section: changed})
    return settings


def with_value(settings: SettingsT, path: str, value: Any) -> SettingsT:
    """The same with another value of a dotted setting."""
    section, _, name = path.partition(".")
    changed = with_value(getattr(settings, section), name, value) if name else value
    return settings.model_copy(update={section: changed})


def check(settings: Settings, name: str, chosen: Row) -> None:
    """Raise `ValueError` for a setting that the chosen method needs otherwise."""
    for path in chosen.positive:
        if value_at(settings, path) == 0:
            raise ValueError(
                f"{path}=0 with method '{name}', which needs more: leave it out ({chosen.defaults[path]} is taken), or raise it"
            )
    wanted = {path.partition(".")[2] for path in chosen.settings if path.startswith(f"{OWN}.")}
    if missing := wanted - set(value_at(settings, OWN)):
        raise ValueError(f"method '{name}' reads {OWN}.{min(missing)}: give it a value")


def no_reader(settings: type[Settings], path: str, value: Any, name: str, table: Mapping[str, Row]) -> str:
    """What is wrong with a value given to a method that does not read it."""
    readers = ", ".join(other for other, row in table.items() if path in row.settings)
    default = value_at(settings.model_construct(), path)
    instead = "leave it out" + ("" if default is None else f", or at {default}")
    return f"{path}={value} with method '{name}', which does not read it (read by {readers or 'none of ours'}): {instead}"
