"""Which rows each optimizer step trains on. A pure function of the step, so a resumed run needs only its step number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from data_processing.errors import ConfigError, DataError
from rlhf_core.recipes.row_order import OrderedRow, RowOrder
from rlhf_core.settings.training import TableConfig


@dataclass(frozen=True)
class DataCursor:
    """Passes over the rows cut into global batches; the last batch of a pass is smaller where `batch_size` does not divide it."""

    order: RowOrder
    batch_size: int
    total_steps: int

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps that a pass takes."""
        return -(-self.order.n_rows // self.batch_size)

    def batch(self, step: int) -> list[int]:
        """Row numbers of the global batch of `step` (0-based)."""
        epoch, position = divmod(step, self.steps_per_epoch)
        start = position * self.batch_size
        return self.order.epoch(epoch)[start : start + self.batch_size]


def plan_cursor(config: TableConfig, rows: Sequence[OrderedRow], seed: int) -> DataCursor:
    """The cursor of a run of `max_steps` steps over `rows`, or of `epochs` passes where that is None.

    Raises `DataError` without rows, `ConfigError` where the settings add up to no step at all, and what `RowOrder` raises.
    """
    n_rows, batch_size, epochs = len(rows), config.batch_size, config.epochs
    if n_rows == 0:
        raise DataError("the training split has no rows, so there is nothing to train on; look at the prepare_data summary")
    steps_per_epoch = -(-n_rows // batch_size)
    total_steps = config.max_steps if config.max_steps is not None else math.floor(epochs * steps_per_epoch + 1e-9)
    if total_steps == 0:
        raise ConfigError(
            f"epochs={epochs} of {n_rows} rows in batches of {batch_size} ({steps_per_epoch} steps a pass) makes 0 steps; "
            f"use epochs >= {1 / steps_per_epoch:.3g}, a smaller batch_size, or set max_steps >= 1"
        )
    return DataCursor(RowOrder(config.order, rows, seed, total_steps * batch_size), batch_size, total_steps)
