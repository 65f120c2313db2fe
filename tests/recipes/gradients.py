"""The gradient of every optimizer step of some runs; in a module of its own, so that Ray's workers can import it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from rlhf_core.batching.rows import TokenRow
from rlhf_core.cluster.actors import MicroLoss, MiniBatch, ModelSetup, TrainingWorker
from rlhf_core.cluster.distributed import init_distributed, rank, world_size
from rlhf_core.engine.engine import StepStats, TrainingEngine


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
    """Each run's gradients, one vector an optimizer step; the function that ranks run. AdamW's beta1 must be 0."""
    init_distributed()
    return {name: _gradients(run) for name, run in runs.items()}


def _gradients(run: Callable[[], None]) -> list[Tensor]:
    seen: list[Tensor] = []
    train_step = TrainingEngine.train_step

    def watched(engine: TrainingEngine, losses: Iterable[Callable[[], Tensor]]) -> StepStats:
        stats = train_step(engine, losses)
        seen.append(_gradient_taken(engine))
        return stats

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingEngine, "train_step", watched)
        run()
    return seen


def _gradient_taken(engine: TrainingEngine) -> Tensor:
    """The whole gradient of the last step, of all ranks and as all ZeRO stages give it; a collective.

    Read from AdamW, whose first moment is its last gradient where beta1 is 0. Where and for how long DeepSpeed keeps a
    gradient itself depends on the stage, and none is left after the step.
    """
    from deepspeed.utils import safe_get_full_optimizer_state

    moments = [safe_get_full_optimizer_state(p, "exp_avg") for p in engine.module.parameters() if p.requires_grad]
    return torch.cat([moment.flatten() for moment in moments])
