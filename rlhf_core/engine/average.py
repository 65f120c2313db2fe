"""The exponential moving average of trained weights: in fp32, cut over ranks as ZeRO cuts the weights themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

# Where DeepSpeed's optimizers keep this rank's fp32 weights: bf16 without sharded gradients, ZeRO 1 and 2, ZeRO 3.
_MASTERS = ("fp32_groups_flat_partition", "single_partition_of_fp32_groups", "fp32_partitioned_groups_flat")


class WeightAverage:
    """Average of the weights that `deepspeed` (an engine) trains, after each of its steps.

    Step t (from 1) keeps the share min(decay, (1 + t) / (10 + t)) of the average, so that the first steps' weights, which nothing
    was learnt with, are soon forgotten.
    """

    def __init__(self, deepspeed: Any, decay: float) -> None:
        self._optimizer, self._decay, self._steps = deepspeed.optimizer, decay, 0
        found = next((getattr(self._optimizer, name) for name in _MASTERS if hasattr(self._optimizer, name)), None)
        # Without ZeRO the weights themselves are what is trained.
        self._is_sharded = found is not None
        masters = [p for p in deepspeed.module.parameters() if p.requires_grad] if found is None else found
        self._masters: list[Tensor] = [master.detach() for master in masters]
        self._values = [master.clone() for master in self._masters]

    def follow(self) -> None:
        """Take in the weights after a step."""
        self._steps += 1
        kept = min(self._decay, (1 + self._steps) / (10 + self._steps))
        torch._foreach_lerp_(self._values, self._masters, 1 - kept)

    @contextmanager
    def put_in(self) -> Iterator[None]:
        """Inside, the model computes and is saved with the average. The weights are the same bits again afterwards. Collective."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def state(self) -> dict[str, Any]:
        """For `restore`."""
        return {"steps": self._steps, "values": self._values}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint's average, of as many ranks."""
        self._steps = state["steps"]
        for value, saved in zip(self._values, state["values"], strict=True):
            value.copy_(saved)

    def _exchange(self) -> None:
        for master, value in zip(self._masters, self._values, strict=True):
            weights = master.clone()
            master.copy_(value)
            value.copy_(weights)
        if not self._is_sharded:
            return
        if hasattr(self._optimizer, "update_lp_params"):
            self._optimizer.update_lp_params()
            return
        for number in range(len(self._masters)):
            self._optimizer._reassign_or_swap_out_partitioned_parameters(number)
        self._optimizer._post_step([])
