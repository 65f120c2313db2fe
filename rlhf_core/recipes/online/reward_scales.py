"""The statistics that rewards are put on one scale by: the reward actor has them, and a checkpoint keeps those of the last round done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Statistics = Mapping[str, tuple[int, float, float]]


class RewardScales:
    """`after` is told the statistics when a round is done; `give` hands them to a new actor."""

    def __init__(self, give: Callable[[Statistics], Any]) -> None:
        self._give, self._statistics = give, dict[str, tuple[int, float, float]]()

    def after(self, statistics: Statistics) -> None:
        """Those of a round that was trained on: one that was not is scored again."""
        self._statistics = dict(statistics)

    def state(self) -> dict[str, list[float]]:
        """For `restore`."""
        return {name: list(values) for name, values in self._statistics.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on with those of a checkpoint."""
        self._statistics = {name: (int(count), mean, squares) for name, (count, mean, squares) in state.items()}
        if self._statistics:
            self._give(self._statistics)
