"""One training engine over DeepSpeed: micro-batches in, one optimizer step out, the same on CPU and GPU, on one rank or many.

A step's gradient is that of the sum of all losses over micro-batches and ranks: callers divide by global denominators,
and nothing here depends on how a batch was cut.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from data_processing.errors import ConfigError, DivergedError
from rlhf_core.allocator import keep_freed_memory
from rlhf_core.device import device_for
from rlhf_core.engine.artifact import write_artifact
from rlhf_core.engine.average import WeightAverage
from rlhf_core.engine.checkpoint import STATE_NAME, random_state, read_manifest, set_random_state, write_checkpoint
from rlhf_core.engine.distributed import init_distributed, rank, world_size
from rlhf_core.engine.optimizer import deepspeed_config, learning_rate_at, make_optimizer
from rlhf_core.settings.training import EngineSettings, OptimizerSettings

TAG = "weights"


@dataclass(frozen=True, slots=True)
class StepStats:
    """One optimizer step: global gradient norm before clipping, and the learning rate it was taken with."""

    grad_norm: float
    learning_rate: float


class TrainingEngine:
    """A module (`LanguageModule` or `ScoreModule`) with its optimizer, sharded as `engine` says. Every method is collective."""

    module: Any

    def __init__(
        self,
        module: nn.Module,
        *,
        optimizer: OptimizerSettings,
        engine: EngineSettings,
        total_steps: int,
        ema_decay: float | None = None,
    ) -> None:
        import deepspeed

        if total_steps < 1:
            raise ConfigError(f"total_steps={total_steps}: training needs at least one optimizer step")
        keep_freed_memory()
        init_distributed(device_for(engine.gpus_per_rank))
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        module.train()
        self.module = module
        self.steps_done = 0
        self._optimizer_settings, self._engine_settings, self._total_steps = optimizer, engine, total_steps
        if engine.gradient_checkpointing:
            self.module.hf.gradient_checkpointing_enable({"use_reentrant": False})
        self._deepspeed, *_ = deepspeed.initialize(
            model=module,
            optimizer=make_optimizer(module, optimizer),
            config=deepspeed_config(engine, optimizer, world_size()),
            dist_init_required=False,
        )
        if engine.zero_stage == 3:
            for parameter in self.module.borrowed_parameters():
                deepspeed.zero.register_external_parameter(module, parameter)
        self._average = None if ema_decay is None else WeightAverage(self._deepspeed, ema_decay)
        self._agree_on_layouts()

    @property
    def device(self) -> torch.device:
        """Where batches belong."""
        return torch.device(self._deepspeed.device)

    @property
    def rank(self) -> int:
        """This process's number among the ranks."""
        return rank()

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return world_size()

    def train_step(self, losses: Iterable[Callable[[], Tensor]], schedule_step: int | None = None) -> StepStats:
        """Run forward and backward of each micro-batch, then one optimizer step.

        It has the learning rate of step `schedule_step` (from 0) of the schedule; None: of as many as were taken before, which
        is another number where some of those planned were left out.

        Each callable runs one forward pass and returns this rank's sum over the micro-batch, already divided by the
        global denominator (scalar, on the graph, 0 where a rank has no row). All ranks give the same number of them.
        Raises `DivergedError` on every rank, weights unchanged, if the loss or the gradient norm is not finite.
        """
        forwards = list(losses)
        place = self.steps_done if schedule_step is None else schedule_step
        learning_rate = learning_rate_at(place, self._total_steps, self._optimizer_settings)
        for group in self._deepspeed.optimizer.param_groups:
            group["lr"] = learning_rate
        total = torch.zeros((), device=self.device)
        for i, forward in enumerate(forwards):
            self._deepspeed.set_gradient_accumulation_boundary(i == len(forwards) - 1)
            self._announce_forward()
            loss = forward()
            total += loss.detach().float()
            # DeepSpeed averages gradients over ranks; the losses are shares of a sum.
            self._deepspeed.backward(loss * self.world_size)
        self._check_finite("loss", self.all_sum(total).item())
        grad_norm = self._step()
        self._check_finite("gradient norm", grad_norm)
        if self._average is not None:
            self._average.follow()
        self.steps_done += 1
        return StepStats(grad_norm, learning_rate)

    def all_sum(self, tensor: Tensor) -> Tensor:
        """The sum of `tensor` over ranks, without gradient; on one rank the tensor itself."""
        if self.world_size == 1:
            return tensor
        total = tensor.detach().clone()
        dist.all_reduce(total)
        return total

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Inside: eval mode, no gradients."""
        self.module.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.module.train()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, with `ema_decay`: the weights are their moving average, which is what is measured and what stays."""
        with nullcontext() if self._average is None else self._average.put_in():
            yield

    def save(self, folder: Path, state: dict[str, Any]) -> None:
        """Write a checkpoint to resume exactly from: weights, their average, optimizer, schedule, every rank's random state, `state` (JSON).

        `folder` appears whole or not at all; of its siblings only the newest few stay (`KEPT_CHECKPOINTS`).
        """
        text = json.dumps({"steps_done": self.steps_done, "caller": state}, allow_nan=False)

        def write(part: Path) -> None:
            self._save_weights(part)
            torch.save(random_state(self.device), part / f"random_{self.rank}.pt")
            if self._average is not None:
                torch.save(self._average.state(), part / f"average_{self.rank}.pt")
            if self.rank == 0:
                (part / STATE_NAME).write_text(text, encoding="utf-8")

        write_checkpoint(folder, write, {"step": self.steps_done, **self._layout()})

    def load(self, folder: Path) -> dict[str, Any]:
        """Go on from a checkpoint of the same layout; returns the `state` given to `save`. On a new engine only.

        Raises `ConfigError` for a damaged checkpoint, or one made with another number of ranks, ZeRO stage or precision.
        """
        facts = read_manifest(folder)
        if facts is None:
            raise ConfigError(f"checkpoint {folder} is damaged or incomplete: remove it to resume from the one before it")
        for name, value in self._layout().items():
            if facts.get(name) != value:
                raise ConfigError(
                    f"checkpoint {folder} was made with engine.{name}={facts.get(name)}, this run has {value}: "
                    f"set it back to resume, or remove {folder.parent} to start anew"
                )
        # Frozen weights are not in there: they come from the model folder.
        self._deepspeed.load_checkpoint(str(folder), tag=TAG, load_module_strict=False)
        state: dict[str, Any] = json.loads((folder / STATE_NAME).read_text(encoding="utf-8"))
        self.steps_done = state["steps_done"]
        set_random_state(torch.load(folder / f"random_{self.rank}.pt", weights_only=False))
        if self._average is not None:
            self._average.restore(torch.load(folder / f"average_{self.rank}.pt"))
        caller: dict[str, Any] = state["caller"]
        return caller

    def save_final(self, output: Path) -> None:
        """Write the `checkpoint` artifact into `output`: trained weights (or their average), what they belong to, tokenizer, how far it went."""
        with self.averaged():
            self._save_weights(output / "zero")
        if self.rank == 0:
            progress = {"steps_done": self.steps_done, "total_steps": self._total_steps, **self._layout()}
            write_artifact(output, self.module, self._engine_settings.precision, progress)

    def _agree_on_layouts(self) -> None:
        """Ranks plan their batches together, so what one of them cannot compute right (on another GPU) none is given."""
        layouts = self.module.layouts
        able = torch.tensor([layouts.packed, layouts.shared], device=self.device, dtype=torch.float32)
        packed, shared = (self.all_sum(able) == self.world_size).tolist()
        self.module.layouts = replace(layouts, packed=packed, shared=shared)

    def _save_weights(self, folder: Path) -> None:
        self._deepspeed.save_checkpoint(str(folder), tag=TAG, exclude_frozen_parameters=True)

    def _layout(self) -> dict[str, Any]:
        """What a checkpoint's files depend on, by the names of the settings."""
        settings = self._engine_settings
        return {"world_size": self.world_size, "zero_stage": settings.zero_stage, "dtype": settings.precision}

    def _announce_forward(self) -> None:
        """What `DeepSpeedEngine.forward` would say. Without it ZeRO 3 keeps only the last micro-batch's gradient."""
        announce = getattr(self._deepspeed.optimizer, "clear_backward_seen_flag", None)
        if announce is not None:
            announce()

    def _step(self) -> float:
        """Take the optimizer step unless the gradient norm is not finite; returns that norm."""
        if self._engine_settings.zero_stage == 0:
            gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
            norm = float(nn.utils.get_total_norm(gradients))
            if math.isfinite(norm):
                self._deepspeed.step()
            return norm
        # With ZeRO, DeepSpeed itself leaves the weights alone and reports infinity.
        self._deepspeed.step()
        return float(self._deepspeed.get_global_grad_norm())

    def _check_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise DivergedError(
                f"{what} of optimizer step {self.steps_done + 1} is {value}; the weights are as before it. "
                "Look at its batch, or lower optimizer.learning_rate"
            )
