"""A small training run that the engine's tests share: rows, a module, a loss cut into micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from rlhf_core.batching.collate import collate
from rlhf_core.batching.rows import TokenRow
from rlhf_core.engine.engine import StepStats, TrainingEngine
from rlhf_core.models.load import load_lm
from rlhf_core.models.lora import add_lora, merged_state_dict
from rlhf_core.models.modules import PolicyModule
from rlhf_core.settings.training import EngineSettings, LoraSettings, OptimizerSettings

# With a large epsilon the weights follow the gradients smoothly; with a small one Adam turns rounding into signs.
OPTIMIZER = OptimizerSettings(learning_rate=1e-2, weight_decay=0.01, epsilon=1e-3)
STEPS = 3


@dataclass(frozen=True)
class Run:
    """What is trained and how it is cut: every rank has `micro_batches` of them, some perhaps empty."""

    model: Path
    engine: EngineSettings
    lora: LoraSettings | None = None
    micro_batches: int = 1
    optimizer: OptimizerSettings = OPTIMIZER
    ema_decay: float | None = None


@dataclass(frozen=True)
class Outcome:
    """Global loss and gradient norm of each step, and the weights at the end (LoRA merged)."""

    losses: list[float]
    grad_norms: list[float]
    weights: dict[str, Tensor]


def token_rows() -> list[TokenRow]:
    """Eight rows of 9 to 23 tokens."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda n: torch.randint(3, 480, (n,), generator=generator).tolist()  # noqa: E731
    return [TokenRow.from_prompt_response(draw(4 + i), draw(5 + i)) for i in range(8)]


def start(run: Run) -> TrainingEngine:
    """A new engine on the run's model."""
    model = load_lm(run.model, dtype=run.engine.dtype, attention="sdpa")
    torch.manual_seed(0)
    if run.lora is not None:
        add_lora(model, run.lora)
    return TrainingEngine(
        PolicyModule(model), optimizer=run.optimizer, engine=run.engine, total_steps=STEPS, ema_decay=run.ema_decay
    )


def step(engine: TrainingEngine, run: Run, rows: Sequence[TokenRow]) -> tuple[float, StepStats]:
    """One optimizer step on `rows`, dealt over ranks and micro-batches; (global loss, stats)."""
    n_targets = sum(row.n_targets for row in rows)
    parts = engine.world_size * run.micro_batches
    mine = [rows[engine.rank * run.micro_batches + k :: parts] for k in range(run.micro_batches)]
    shares: list[Tensor] = []

    def loss(part: Sequence[TokenRow]) -> Tensor:
        logprobs, _ = engine.module(collate(part, pad_id=0, packed=True).to(engine.device))
        shares.append(-logprobs.sum() / n_targets)
        return shares[-1]

    forwards: list[Callable[[], Tensor]] = [partial(loss, part) for part in mine]
    stats = engine.train_step(forwards)
    return engine.all_sum(torch.stack(shares).detach().sum()).item(), stats


def train(run: Run) -> Outcome:
    """All steps on the same rows; the function that ranks run."""
    engine = start(run)
    results = [step(engine, run, token_rows()) for _ in range(STEPS)]
    weights = merged_state_dict(engine.module.hf, torch.float32)
    return Outcome([loss for loss, _ in results], [stats.grad_norm for _, stats in results], weights)
