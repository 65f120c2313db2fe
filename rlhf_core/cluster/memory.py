"""What a process of a run takes of memory, for people who compare methods or size machines. No torch is loaded for it."""

from __future__ import annotations

import resource
import sys


class Measured:
    """A worker that says how much memory its process has taken."""

    def memory_mib(self) -> float:
        """As `peak_memory_mib`."""
        return peak_memory_mib()


def peak_memory_mib() -> float:
    """The most that this process has held of main memory and of a GPU's, MiB."""
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    torch = sys.modules.get("torch")
    on_gpu: float = torch.cuda.max_memory_allocated() / 2**20 if torch is not None and torch.cuda.is_initialized() else 0.0
    return own + on_gpu
