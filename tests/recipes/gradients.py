"""The gradient of every optimizer step of some runs; in a module of its own, so that Ray's workers can import it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pytest
import torch
from deepspeed import DeepSpeedEngine
from deepspeed.utils import safe_get_full_grad
from torch import Tensor

from rlhf_core.batching.rows import TokenRow
from rlhf_core.cluster.actors import MicroLoss, MiniBatch, ModelSetup, TrainingWorker
from rlhf_core.engine.distributed import init_distributed, rank, world_size


@dataclass(frozen=True)
class ActorRun:
    """What an actor of online training does with a round's rows, `fields` being [len(rows), T]."""

    worker: type[TrainingWorker]
    setup: ModelSetup
    loss: MicroLoss
    rows: list[TokenRow]
    fields: dict[str, Tensor]
    plan: list[MiniBatch]

    def __call__(self) -> None:
        """One optimizer step for each mini-batch, on this process's rank."""
        worker = self.worker()
        worker.rank, worker.world_size = rank(), world_size()
        worker.setup(self.setup)
        worker.train(self.loss, self.rows, self.fields, self.plan)


def gradients_of(runs: Mapping[str, Callable[[], None]]) -> dict[str, list[Tensor]]:
    """Each run's gradients before clipping, one vector an optimizer step; the function that ranks run. For ZeRO 1 to 3."""
    init_distributed(torch.device("cpu"))
    return {name: _gradients(run) for name, run in runs.items()}


def _gradients(run: Callable[[], None]) -> list[Tensor]:
    seen: list[Tensor] = []
    step = DeepSpeedEngine.step

    def watched(engine: DeepSpeedEngine) -> None:
        # Here the last micro-batch is reduced over the ranks and the step has not yet let go of the gradient. AdamW's
        # moments would do afterwards, but with two parameter groups DeepSpeed 0.19 links only the first group's.
        seen.append(torch.cat([safe_get_full_grad(p).flatten() for p in engine.module.parameters() if p.requires_grad]))
        step(engine)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DeepSpeedEngine, "step", watched)
        run()
    return seen
