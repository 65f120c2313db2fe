"""Weights on their way from actor to actor: as arrays, which Ray puts into shared memory once and hands out uncopied.

Tensors would be copied three more times, as Ray pickles them byte by byte.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

# NumPy has no bf16: its bits travel under another name.
BITS = {torch.bfloat16: torch.int16}

Arrays = Mapping[str, tuple[Any, torch.dtype]]


def to_arrays(state: Mapping[str, Tensor]) -> Arrays:
    """Tensors on the CPU as arrays that share their memory, each with the dtype it stands for."""
    return {name: (t.contiguous().view(BITS.get(t.dtype, t.dtype)).numpy(), t.dtype) for name, t in state.items()}


def to_tensors(arrays: Arrays) -> dict[str, Tensor]:
    """The tensors again, for reading only: they may lie in memory that others read too."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return {name: torch.from_numpy(array).view(dtype) for name, (array, dtype) in arrays.items()}
