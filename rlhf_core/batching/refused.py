"""Rows that a chat template cannot render: left out, counted and named up to a share, an error above it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from data_processing.errors import ConfigError, DataError

_NAMED_ROWS = 3

T = TypeVar("T")


def render_rows(
    table: str, rows: Sequence[Mapping[str, Any]], render: Callable[[Mapping[str, Any]], T], max_refused_fraction: float
) -> tuple[list[T], list[str]]:
    """What `render` makes of the rows that it accepts, and a line for each that it refuses with `DataError`.

    Raises `DataError` as soon as more than `max_refused_fraction` of all rows are refused, and `ConfigError` naming the row
    where the template itself fails.
    """
    rendered, refused = list[T](), list[str]()
    for number, row in enumerate(rows):
        where = f"table '{table}', row {number} (id {row['id']})"
        try:
            rendered.append(render(row))
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
        except DataError as error:
            refused.append(f"{where}: {error}")
            if len(refused) > max_refused_fraction * len(rows):
                raise DataError(
                    f"{len(refused)} of the first {number + 1} of {len(rows)} rows cannot be used, more than "
                    f"max_dropped_fraction={max_refused_fraction} allows: {named(refused)}"
                ) from error
        except MemoryError:
            raise
        except Exception as error:  # what nobody has thought of would fail again: it is the row's, or the template's
            raise DataError(
                f"{where}: rendering it failed: {type(error).__name__}: {error}; change the row, or give another template in "
                "model.chat_template"
            ) from error
    return rendered, refused


def named(refused: Sequence[str]) -> str:
    """The first of the lines, with their reasons."""
    return "; ".join(refused[:_NAMED_ROWS]) + ("; ..." if len(refused) > _NAMED_ROWS else "")
