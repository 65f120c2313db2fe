"""What the rows of all methods have in common: a name finds one, functions have import paths, and some settings have few readers."""

from __future__ import annotations

from collections.abc import Mapping
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


def modules_of(name: str) -> list[str]:
    """The user's modules that a method's name mentions: none for ours."""
    return [name.partition(":")[0]] if ":" in name else []


def value_at(settings: Settings, path: str) -> Any:
    """The value of a dotted setting."""
    value: Any = settings
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else getattr(value, name)
    return value


def taken(settings: Settings, chosen: Row, path: str, otherwise: Mapping[str, float]) -> Any:
    """The value of a dotted setting; where that is null the method's own, and `otherwise` for a method that has none."""
    value = value_at(settings, path)
    return chosen.defaults.get(path, otherwise.get(path)) if value is None else value


def check_readers(settings: Settings, table: Mapping[str, RowT], name: str, chosen: RowT) -> None:
    """Raise `ValueError` for a setting that is not at its default and that the chosen method does not read, or needs otherwise."""
    plain = type(settings).model_construct()
    for path in sorted({path for other in table.values() for path in other.settings} - chosen.settings):
        if not path.startswith(f"{OWN}.") and (value := value_at(settings, path)) != value_at(plain, path):
            readers = [other for other, row in table.items() if path in row.settings]
            raise ValueError(
                f"{path}={_shown(value)} with method '{name}', which does not read it (read by {', '.join(readers)}): leave it "
                f"out, or at {_shown(value_at(plain, path))}"
            )
    for path in chosen.positive:
        if value_at(settings, path) == 0:
            raise ValueError(
                f"{path}=0 with method '{name}', which needs more: leave it out ({chosen.defaults[path]} is taken), or raise it"
            )
    _check_own(settings, name, chosen)


def _check_own(settings: Settings, name: str, chosen: Row) -> None:
    given = set(value_at(settings, OWN))
    wanted = {path.partition(".")[2] for path in chosen.settings if path.startswith(f"{OWN}.")}
    if given != wanted:
        what = f"needs {sorted(wanted)}" if wanted else "reads none"
        raise ValueError(f"{OWN}={sorted(given)} with method '{name}', which {what}")


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)
