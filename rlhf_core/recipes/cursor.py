"""Which rows each optimizer step trains on. A pure function of the step, so a resumed run needs only its step number."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from data_processing.errors import ConfigError, DataError
from rlhf_core.batching.balance import order


@dataclass(frozen=True)
class DataCursor:
    """Epochs of seeded shuffles cut into global batches; every row is in exactly one batch of each epoch.

    The last batch of an epoch is smaller where `batch_size` does not divide `n_rows`.
    """

    n_rows: int
    batch_size: int
    seed: int
    total_steps: int

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps that see every row once."""
        return -(-self.n_rows // self.batch_size)

    def batch(self, step: int) -> list[int]:
        """Row numbers of the global batch of `step` (0-based), in the order of the shuffle."""
        epoch, position = divmod(step, self.steps_per_epoch)
        start = position * self.batch_size
        return list(epoch_order(self.n_rows, self.seed, epoch)[start : start + self.batch_size])


def plan_cursor(n_rows: int, batch_size: int, epochs: float, max_steps: int | None, seed: int) -> DataCursor:
    """The cursor of a run of `max_steps` steps, or of `epochs` passes where that is None.

    Raises `DataError` without rows, and `ConfigError` where the settings add up to no step at all.
    """
    if n_rows == 0:
        raise DataError("the training split has no rows, so there is nothing to train on; look at the prepare_data summary")
    steps_per_epoch = -(-n_rows // batch_size)
    total_steps = max_steps if max_steps is not None else math.floor(epochs * steps_per_epoch + 1e-9)
    if total_steps == 0:
        raise ConfigError(
            f"epochs={epochs} of {n_rows} rows in batches of {batch_size} ({steps_per_epoch} steps a pass) makes 0 steps; "
            f"use epochs >= {1 / steps_per_epoch:.3g}, a smaller batch_size, or set max_steps >= 1"
        )
    return DataCursor(n_rows, batch_size, seed, total_steps)


@lru_cache(maxsize=2)
def epoch_order(n_rows: int, seed: int, epoch: int) -> tuple[int, ...]:
    """`balance.order`, kept for the steps that follow: shuffling all rows for each of them would be quadratic."""
    return tuple(order(n_rows, seed, epoch))
