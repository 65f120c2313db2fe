"""A key-value cache that is allocated once, so that a decoding step writes its own keys and values and copies no others."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


def preallocate(cache: Cache, rows: Tensor, capacity: int) -> None:
    """Make the cache that of `rows` (a row may come more than once), in place, with room for `capacity` tokens.

    Layers that keep all tokens are allocated whole; others (sliding windows, recurrent states) are only selected from.
    """
    for number, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            cache.layers[number] = PreallocatedLayer(layer, rows, capacity)
        else:
            layer.reorder_cache(rows)


def growing_layers(cache: Cache) -> list[str]:
    """The kinds of those layers that cannot be allocated whole, and are copied as they grow, or kept as they are: one a layer."""
    return [type(layer).__name__ for layer in cache.layers if type(layer) is not DynamicLayer]


class PreallocatedLayer(DynamicLayer):  # type: ignore[misc]  # transformers is not typed
    """A layer whose `keys` and `values` [B, heads, tokens, width] are the filled part of larger tensors."""

    keys: Tensor
    values: Tensor

    def __init__(self, filled: DynamicLayer, rows: Tensor, capacity: int) -> None:
        super().__init__()
        self.dtype, self.device, self.is_initialized = filled.dtype, filled.device, True
        self._capacity = capacity
        self._take(filled.keys, filled.values, rows)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the states of new tokens behind those that are there; returns all."""
        start, end = self.keys.shape[-2], self.keys.shape[-2] + key_states.shape[-2]
        self._all_keys[:, :, start:end], self._all_values[:, :, start:end] = key_states, value_states
        self.keys, self.values = self._all_keys[:, :, :end], self._all_values[:, :, :end]
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep the rows `beam_idx`."""
        self._take(self.keys, self.values, beam_idx)

    def _take(self, keys: Tensor, values: Tensor, rows: Tensor) -> None:
        length = keys.shape[-2]
        self._all_keys, self._all_values = self._room(keys, rows), self._room(values, rows)
        self.keys, self.values = self._all_keys[:, :, :length], self._all_values[:, :, :length]

    def _room(self, states: Tensor, rows: Tensor) -> Tensor:
        """The states of `rows` with room behind them."""
        _, heads, length, width = states.shape
        room = states.new_empty(len(rows), heads, self._capacity, width)
        room[:, :, :length] = states[rows]
        return room
