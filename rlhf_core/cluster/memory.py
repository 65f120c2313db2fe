"""What a process of a run takes of memory and processors, for people who compare methods or size machines. No torch is loaded for it."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Usage:
    """The most memory that a process has held, MiB, and the processor time that it has taken since it started, seconds."""

    memory_mib: float
    cpu_seconds: float


class Measured:
    """A worker that says what its process has taken."""

    def usage(self) -> Usage:
        """So far."""
        return Usage(peak_memory_mib(), time.process_time())


def peak_memory_mib() -> float:
    """The most that this process has held of main memory and of a GPU's, MiB."""
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    torch = sys.modules.get("torch")
    on_gpu: float = torch.cuda.max_memory_allocated() / 2**20 if torch is not None and torch.cuda.is_initialized() else 0.0
    return own + on_gpu
