"""The workers that hold models, plain classes that `Group` runs as Ray actors. They know models and engines, no method.

What is computed comes from the recipe as small picklable objects (`Forward`, `MicroLoss`); where it is computed, how rows
are cut over ranks and micro-batches, and what is kept in memory is decided here. Everything heavy happens in `setup`, so
that a failure there comes back with its traceback and class.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from rlhf_core.batching.collate import ModelBatch, collate
from rlhf_core.batching.rows import TokenRow
from rlhf_core.batching.sharing import plan_rows
from rlhf_core.cluster.memory import Measured
from rlhf_core.cluster.weights import Arrays, to_arrays
from rlhf_core.device import device_for, placed
from rlhf_core.engine.distributed import free_address, set_rank_environment
from rlhf_core.precision import Dtype
from rlhf_core.settings.training import EngineSettings, LoraSettings, OptimizerSettings

if TYPE_CHECKING:
    from rlhf_core.engine.engine import TrainingEngine
    from rlhf_core.models.modules import PolicyModule, ScoreModule


@dataclass(frozen=True, slots=True)
class ModelSetup:
    """What a worker with a model is started with; `model` is a Hugging Face folder."""

    model: Path
    engine: EngineSettings
    lora: LoraSettings
    optimizer: OptimizerSettings
    total_steps: int
    pad_id: int
    seed: int
    new_head: bool
    trust_remote_code: bool
    ema_decay: float | None = None


@dataclass(frozen=True, slots=True)
class Totals:
    """Denominators of one mini-batch over all ranks: its response tokens and sequences, and the tokens of the rows computed."""

    tokens: float
    sequences: int
    computed_tokens: float


@dataclass(frozen=True, slots=True)
class MiniBatch:
    """The rows (by number) of one optimizer step. Rows without a gradient may be left out of `rows`, never out of `totals`.

    `step` is its number (from 0) among all that the run has planned: what the learning rate hangs on.
    """

    rows: list[int]
    totals: Totals
    step: int


@dataclass(frozen=True, slots=True)
class UpdateStats:
    """One optimizer step. `shares` are this rank's parts of global means: added up over ranks they are the means.

    `outputs`, each [rows of the round, T], are what the model gave before the step, 0 on rows of other ranks and mini-batches.
    `seconds` is how long this rank took.
    """

    shares: dict[str, float]
    grad_norm: float
    learning_rate: float
    seconds: float
    outputs: dict[str, Tensor]


class Forward(Protocol):
    """A scoring pass: module and batch to named values, each [n_rows, T]."""

    def __call__(self, module: nn.Module, batch: ModelBatch) -> dict[str, Tensor]:
        """Values at the targets, the same names for every batch."""
        ...


class MicroLoss(Protocol):
    """A loss on one micro-batch: `fields` are [n_rows, T]; returns shares of global means, "loss" with a gradient."""

    def __call__(
        self, module: nn.Module, batch: ModelBatch, fields: Mapping[str, Tensor], totals: Totals
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Named shares, each a scalar, and the module's named values at the targets, each [n_rows, T]."""
        ...


class _Values:
    """Named values of the rows, each [len(rows), T], on the CPU; 0 where nothing was put."""

    def __init__(self, rows: Sequence[TokenRow]) -> None:
        self._shape = len(rows), max(row.n_targets for row in rows)
        self.named: dict[str, Tensor] = {}

    def put(self, numbers: Sequence[int], values: Mapping[str, Tensor]) -> None:
        """Those of the rows of these numbers."""
        for name, found in values.items():
            place = self.named.setdefault(name, torch.zeros(self._shape))
            place[numbers, : found.shape[1]] = found.detach().float().cpu()


class ScoringWorker(Measured):
    """A frozen model that gives values for rows; on its own it is the reference of online training.

    It is one process, but `world_size` is that of the policy: it computes what each of the policy's ranks would, in turn.
    """

    module: PolicyModule | ScoreModule
    device: torch.device
    rank = 0
    world_size = 1

    def setup(self, setup: ModelSetup) -> tuple[str, ...]:
        """Load the causal LM at `setup.model`; returns lines for people. Raises what loading raises."""
        from rlhf_core.models.load import load_lm
        from rlhf_core.models.modules import PolicyModule

        self._remember(setup)
        lm = load_lm(
            setup.model,
            dtype=setup.engine.precision,
            attention=setup.engine.attention,
            trust_remote_code=setup.trust_remote_code,
        )
        self.device, self.world_size = device_for(setup.engine.gpus_per_rank), setup.engine.world_size
        self.module = PolicyModule(lm.to(self.device), setup.engine.packing).eval().requires_grad_(False)
        return self.module.layouts.notes

    def layouts(self) -> dict[str, float]:
        """How its batches are laid out, as metrics."""
        metrics: dict[str, float] = self.module.layouts.metrics
        return metrics

    def predict(self, forward: Forward, rows: Sequence[TokenRow]) -> dict[str, Tensor]:
        """`forward` on this process's share of `rows`, each as fp32 [len(rows), T] with zeros on the rows of others.

        The rows are cut as `TrainingWorker.train` cuts them, so that the same weights give the same bits there.
        """
        values = _Values(rows)
        with torch.no_grad():
            for indices in self._plan(rows):
                values.put(indices, forward(self.module, self._batch([rows[i] for i in indices])))
        return values.named

    def _remember(self, setup: ModelSetup) -> None:
        torch.set_num_threads(setup.engine.threads_per_rank)
        torch.manual_seed(setup.seed)
        self._engine_settings = setup.engine
        self._pad_id = setup.pad_id

    def _plan(self, rows: Sequence[TokenRow]) -> list[list[int]]:
        layouts, max_tokens = self.module.layouts, self._engine_settings.micro_batch_tokens
        return self._share(plan_rows(rows, max_tokens, self.world_size, packed=layouts.packed, shared=layouts.shared))

    def _share(self, plan: list[list[list[int]]]) -> list[list[int]]:
        """This process's micro-batches of a plan for all ranks: here every rank's that has rows."""
        return [cut for cuts in plan for cut in cuts if cut]

    def _batch(self, rows: Sequence[TokenRow]) -> ModelBatch:
        layouts = self.module.layouts
        return collate(rows, pad_id=self._pad_id, packed=layouts.packed, shared=layouts.shared).to(self.device)


class TrainingWorker(ScoringWorker):
    """One rank of a model that is trained; subclasses say which model."""

    engine: TrainingEngine

    def address(self) -> tuple[str, int]:
        """Where rank 0 listens for the others: this node's ip and a free port."""
        return free_address()

    def join(self, rank: int, world_size: int, address: tuple[str, int]) -> None:
        """Take a place among the ranks; before `setup`."""
        self.rank, self.world_size = rank, world_size
        set_rank_environment(rank, world_size, address)

    def setup(self, setup: ModelSetup) -> tuple[str, ...]:
        """Load, add adapters, start the engine; returns lines for people. Raises what those raise."""
        from rlhf_core.engine.engine import TrainingEngine

        self._remember(setup)
        self.engine = TrainingEngine(
            self._load(setup),
            optimizer=setup.optimizer,
            engine=setup.engine,
            total_steps=max(1, setup.total_steps),
            ema_decay=setup.ema_decay,
        )
        self.module, self.device = self.engine.module, self.engine.device
        return self.module.layouts.notes

    def _load(self, setup: ModelSetup) -> nn.Module:
        raise NotImplementedError

    def _share(self, plan: list[list[list[int]]]) -> list[list[int]]:
        """As many as every other rank has, also where some are empty: ranks meet in each."""
        return plan[self.rank]

    def predict(self, forward: Forward, rows: Sequence[TokenRow]) -> dict[str, Tensor]:
        """As `ScoringWorker.predict`, with the current weights."""
        with self.engine.evaluating():
            return super().predict(forward, rows)

    def train(
        self, loss: MicroLoss, rows: Sequence[TokenRow], fields: Mapping[str, Tensor], plan: Sequence[MiniBatch]
    ) -> list[UpdateStats]:
        """One optimizer step for each mini-batch of `plan`, `fields` being [len(rows), T]."""
        return [self._step(loss, rows, fields, mini_batch) for mini_batch in plan]

    def _step(
        self, loss: MicroLoss, rows: Sequence[TokenRow], fields: Mapping[str, Tensor], mini_batch: MiniBatch
    ) -> UpdateStats:
        began = time.monotonic()
        shares: dict[str, float] = defaultdict(float)
        outputs = _Values(rows)

        def micro(numbers: list[int]) -> Tensor:
            batch = self._batch([rows[i] for i in numbers])
            cut = {name: field[numbers, : batch.width].to(self.device) for name, field in fields.items()}
            parts, values = loss(self.module, batch, cut, mini_batch.totals)
            outputs.put(numbers, values)
            for name, part in parts.items():
                shares[name] += float(part.detach())
            return parts["loss"]

        cuts = self._plan([rows[i] for i in mini_batch.rows])
        step = self.engine.train_step([partial(micro, [mini_batch.rows[i] for i in cut]) for cut in cuts], mini_batch.step)
        return UpdateStats(dict(shares), step.grad_norm, step.learning_rate, time.monotonic() - began, outputs.named)

    def save(self, folder: Path, state: dict[str, Any]) -> None:
        """Keep everything needed to go on from here."""
        self.engine.save(folder, state)

    def load(self, folder: Path) -> dict[str, Any]:
        """Go on from `folder`; returns the state given to `save`."""
        return self.engine.load(folder)

    def save_final(self, output: Path) -> None:
        """Write the checkpoint artifact."""
        self.engine.save_final(output)


class PolicyWorker(TrainingWorker):
    """The policy: a causal LM with adapters."""

    def _load(self, setup: ModelSetup) -> nn.Module:
        from rlhf_core.models.load import load_lm
        from rlhf_core.models.lora import add_lora
        from rlhf_core.models.modules import PolicyModule

        lm = load_lm(
            setup.model,
            dtype=setup.engine.precision,
            attention=setup.engine.attention,
            trust_remote_code=setup.trust_remote_code,
        )
        if setup.lora.rank:
            add_lora(lm, setup.lora)
        return PolicyModule(placed(lm, setup.engine), setup.engine.packing)

    def rehearse(self, folder: Path) -> None:
        """As `rehearse_convert`."""
        from rlhf_core.engine.rehearsal import rehearse_convert

        rehearse_convert(self.engine, folder)

    def predict_reference(self, forward: Forward, rows: Sequence[TokenRow]) -> dict[str, Tensor]:
        """As `predict`, with the weights that training started from: those below the adapters, which must be there."""
        from rlhf_core.models.lora import without_adapters

        with without_adapters(self.engine.module.hf):
            return self.predict(forward, rows)

    def weights(self, dtype: Dtype, averaged: bool = False) -> Arrays:
        """All weights, or with `averaged` what stays of them, under their Hugging Face names, on the CPU.

        Adapters are merged in fp32, and the sum is rounded to `dtype`.
        """
        from rlhf_core.models.load import TORCH_DTYPES
        from rlhf_core.models.lora import merged_state_dict

        with self.engine.averaged() if averaged else nullcontext():
            # Ray copies them into its store before this actor does anything else; the average is gone by then.
            state: dict[str, Tensor] = merged_state_dict(self.module.hf, TORCH_DTYPES[dtype], copied=averaged)
        return to_arrays({name: tensor.cpu() for name, tensor in state.items()})


class CriticWorker(TrainingWorker):
    """The critic: a value a token from a backbone with a score head."""

    def _load(self, setup: ModelSetup) -> nn.Module:
        from rlhf_core.models.load import load_scorer
        from rlhf_core.models.lora import add_lora
        from rlhf_core.models.modules import ScoreModule

        scorer = load_scorer(
            setup.model,
            dtype=setup.engine.precision,
            attention=setup.engine.attention,
            trust_remote_code=setup.trust_remote_code,
            new_head=setup.new_head,
        )
        if setup.lora.rank:
            add_lora(scorer, setup.lora)
        return ScoreModule(placed(scorer, setup.engine), setup.engine.packing)
