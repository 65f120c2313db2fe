"""How much of a run may go on at once: slots, memory and GPUs, and what a stage waits for that does not fit beside the others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rlhf_core.cluster.resources import in_words

_NO_NEEDS: Mapping[str, float] = {}


@dataclass(frozen=True)
class Limits:
    """How much may run at once: `stages` that have work to do, `memory_gib` for their estimated needs, and `gpus`.

    `needs_gib` has an entry for each node with work to do; the others, cached ones, always fit. `needs_gpus` has one for each
    that reserves GPUs. A stage that is larger than everything there is still runs, alone: what it runs on says what is wrong.
    """

    stages: int
    memory_gib: float
    needs_gib: Mapping[str, float]
    gpus: float = math.inf
    needs_gpus: Mapping[str, float] = field(default_factory=lambda: _NO_NEEDS)

    def obstacle(self, name: str, running: Sequence[str]) -> str | None:
        """What `name` waits for before it may start beside `running`, in words; None where it may."""
        working = [other for other in running if other in self.needs_gib]
        if name not in self.needs_gib or not working:
            return None
        holders = [other for other in working if self.needs_gpus.get(other)]
        wanted, held = self.needs_gpus.get(name, 0.0), sum(self.needs_gpus[other] for other in holders)
        if wanted and holders and wanted + held > self.gpus + 1e-6:
            return f"waiting for {in_words('GPU', wanted)}, which other stages of this run hold"
        if len(working) >= self.stages:
            return f"waiting for one of {self.stages} places (runtime.max_parallel_stages)"
        free_gib = self.memory_gib - sum(self.needs_gib[other] for other in working)
        if self.needs_gib[name] > free_gib:
            return f"waiting for {self.needs_gib[name]:.1f} GiB of memory"
        return None
