"""The training loop that SFT, the reward model and the preference methods share: steps, resume, evaluation, metrics.

A recipe hands in examples and one loss function. Every number that function returns is its micro-batch's share of a
mean over the global batch, so shares add up over micro-batches and ranks, and no cut of the batch changes a gradient.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from data_processing.errors import ConfigError, DataError, DivergedError, PreemptedError
from data_processing.pace import Pace
from rlhf_core.batching.balance import micro_batches
from rlhf_core.batching.collate import ModelBatch, collate
from rlhf_core.batching.rows import TokenRow
from rlhf_core.batching.sharing import line_tokens
from rlhf_core.cluster.memory import peak_memory_mib
from rlhf_core.engine.checkpoint import latest_checkpoint
from rlhf_core.engine.engine import TrainingEngine
from rlhf_core.recipes.best import Best
from rlhf_core.recipes.cursor import DataCursor
from rlhf_core.recipes.examples import Example, Splits, digest
from rlhf_core.recipes.job import TrainingJob
from rlhf_core.recipes.stop import stop_requested
from rlhf_core.settings.training import EngineSettings

BAD_BATCH_NAME = "bad_batch.json"


@dataclass(frozen=True, slots=True)
class Totals:
    """What a global batch tells each of its micro-batches.

    Denominators: its examples, and the targets in their first rows (conversation or chosen), or what these count together
    (`weight`). KTO has the targets of desirable answers instead, how many answers are `desirable` and how many `undesirable`, and its
    `reference_point` (nats).
    """

    examples: int
    targets: int
    weight: float = 0.0
    reference_point: float = 0.0
    desirable: int = 0
    undesirable: int = 0

    @classmethod
    def of(cls, examples: Sequence[Example]) -> Totals:
        """Count `examples`, which are the whole global batch."""
        rows = [example.rows[0] for example in examples]
        return cls(len(examples), sum(row.n_targets for row in rows), math.fsum(w for row in rows for w in row.target_weights))


class Loss(Protocol):
    """A recipe's loss: the micro-batch, its examples and the global batch's totals → named shares, "loss" among them.

    `batch` holds the rows of `examples` one after the other; only "loss" needs a gradient.
    """

    def __call__(self, batch: ModelBatch, examples: Sequence[Example], totals: Totals) -> dict[str, Tensor]:
        """Shares of global means, each a scalar."""


@dataclass(frozen=True)
class Trainer:
    """One training run on this rank: where its rows come from, what it minimises, and how it is cut and reported."""

    job: TrainingJob[Any]
    engine: TrainingEngine
    cursor: DataCursor
    splits: Splits
    loss: Loss
    pad_id: int
    totals: Callable[[Sequence[Example]], Totals] = Totals.of

    def run(self) -> dict[str, float]:
        """Train from the latest checkpoint to the last step; returns the metrics of the evaluation at the end.

        Raises `PreemptedError` after saving when asked to stop, `DivergedError` after keeping the batch that did it.
        """
        if self.job.config.keep_best is not None and not self.splits.validation:
            raise ConfigError(
                f"keep_best='{self.job.config.keep_best}' without validation rows: give the data some (data.validation_fraction), or "
                "leave it out"
            )
        done = self._resume()
        pace = Pace(done)
        try:
            for step in range(done, self.cursor.total_steps):
                if step and _due(step, self.job.config.eval_every_steps):
                    self.best.see(step, self._evaluate(step), self.engine.save_final)
                    if self.best.is_over:
                        return self._ended_early(step)
                stop_if_requested(self.engine, self.job.resume)
                self._train(step, pace)
                done = step + 1
                if _due(done, self.job.config.checkpoint_every_steps):
                    self._save(done)
            last = self._evaluate(done)
            self.best.see(done, last, self.engine.save_final)
            return self.best.metrics or last
        except PreemptedError:
            self._save(done)
            raise

    def _ended_early(self, step: int) -> dict[str, float]:
        self._progress(step, f"ended after step {step}: {self.best.why_over}")
        return self.best.metrics

    def _train(self, step: int, pace: Pace) -> None:
        """One optimizer step and its line of metrics."""
        examples = [self.splits.train[i] for i in self.cursor.batch(step)]
        started, cpu_before = time.monotonic(), time.process_time()
        totals, sums = self.totals(examples), Sums()
        try:
            stats = self.engine.train_step([partial(self._forward, part, totals, sums) for part in self._parts(examples)])
        except DivergedError as error:
            self._keep_bad_batch(step, examples, error)
            raise
        # Of all ranks together, which add up their shares anyway.
        taken = {"memory_mib": peak_memory_mib(), "cpu_seconds": time.process_time() - cpu_before}
        sums.add({name: torch.tensor(value, device=self.engine.device) for name, value in taken.items()})
        seconds = time.monotonic() - started
        tokens = sum(example.length_tokens for example in examples)
        self._report(
            step + 1,
            sums.over_ranks(self.engine)
            | {
                "grad_norm": stats.grad_norm,
                "learning_rate": stats.learning_rate,
                "epoch": (step + 1) / self.cursor.steps_per_epoch,
                "tokens": tokens,
                "seen_tokens": self._seen[step + 1],
                "tokens_per_s": tokens / seconds,
                "seconds": seconds,
            },
            pace,
        )

    def _parts(self, examples: Sequence[Example]) -> list[list[Example]]:
        return [[examples[i] for i in part] for part in plan_of_rank(examples, self.engine, self.job.config.engine)]

    def _forward(self, examples: Sequence[Example], totals: Totals, sums: Sums) -> Tensor:
        """This micro-batch's share of the global loss; its other shares go into `sums`."""
        rows = [row for example in examples for row in example.rows]
        shares = self.loss(batch_of(rows, self.engine, self.pad_id), examples, totals)
        sums.add(shares)
        return shares["loss"]

    def _evaluate(self, step: int) -> dict[str, float]:
        """Means over the validation split, of the weights that would stay, each named eval_*; empty without one."""
        if not self.splits.validation:
            return {}
        totals, sums = self.totals(self.splits.validation), Sums()
        parts = self._parts(self.splits.validation)
        pace = Pace()
        with self.engine.averaged(), self.engine.evaluating():
            for number, part in enumerate(parts, start=1):
                stop_if_requested(self.engine, self.job.resume)
                self._forward(part, totals, sums)
                left = pace.left(number, len(parts))
                self._progress(step, f"validation after step {step}: micro-batch {number} of {len(parts)}{left}")
        metrics = {f"eval_{name}": value for name, value in sums.over_ranks(self.engine).items()}
        if self.engine.rank == 0:
            self.job.events.metrics(step, metrics)
        if not math.isfinite(metrics["eval_loss"]):
            raise DivergedError(f"eval_loss after step {step} is {metrics['eval_loss']}: lower optimizer.learning_rate")
        return metrics

    def _report(self, step: int, metrics: Mapping[str, float], pace: Pace) -> None:
        if self.engine.rank == 0:
            self.job.events.metrics(step, metrics)
        loss, speed = f"loss {metrics['loss']:.4f}", f"{metrics['tokens_per_s']:.0f} tokens/s"
        total = self.cursor.total_steps
        self._progress(step, f"step {step} of {total}: {loss}, {speed}{pace.left(step, total)}")

    def _progress(self, step: int, message: str) -> None:
        if self.engine.rank == 0:
            self.job.events.progress(step, self.cursor.total_steps, message)

    def _resume(self) -> int:
        """Steps already done: loads the latest checkpoint, if there is one and it belongs to this run."""
        folder = latest_checkpoint(self.job.resume)
        if folder is None:
            return 0
        state = self.engine.load(folder)
        if state["data_sha256"] != self._data_sha256:
            raise DataError(
                f"checkpoint {folder} was trained on other rows than {self.job.data} now gives (table, chat template or tokenizer "
                f"changed): remove {self.job.resume} to start anew, or bring the data back"
            )
        if state["settings"] != self._settings:
            changed = sorted(name for name, value in self._settings.items() if state["settings"].get(name) != value)
            raise ConfigError(
                f"checkpoint {folder} was made with other values of {changed}: remove {self.job.resume} or set them back"
            )
        self.best.restore(state["best"])
        return int(state["step"])

    def _save(self, done: int) -> None:
        state = {"step": done, "best": self.best.state(), "data_sha256": self._data_sha256, "settings": self._settings}
        self.engine.save(self.job.resume / f"step_{done:08d}", state)

    @cached_property
    def best(self) -> Best:
        """The best step so far."""
        return Best(self.job.config, self.job.resume)

    @cached_property
    def _seen(self) -> list[int]:
        """Tokens of the rows that the first n steps train on, for every n."""
        steps = ([self.splits.train[i].length_tokens for i in self.cursor.batch(n)] for n in range(self.cursor.total_steps))
        return [0, *accumulate(map(sum, steps))]

    @cached_property
    def _data_sha256(self) -> str:
        return digest([*self.splits.train, *self.splits.validation])

    @cached_property
    def _settings(self) -> dict[str, Any]:
        return {**self.job.config.result_fields(), "seed": self.job.seed}

    def _keep_bad_batch(self, step: int, examples: Sequence[Example], error: DivergedError) -> None:
        if self.engine.rank == 0:
            rows = [{"id": e.id, "rows": [{"ids": row.ids, "is_target": row.is_target} for row in e.rows]} for e in examples]
            bad_batch = {"step": step + 1, "error": str(error), "examples": rows}
            (self.job.resume / BAD_BATCH_NAME).write_text(json.dumps(bad_batch), encoding="utf-8")


class Sums:
    """Named scalars added up over micro-batches, then over ranks; in float64, off the graph."""

    def __init__(self) -> None:
        self._values: dict[str, Tensor] = {}

    def add(self, shares: Mapping[str, Tensor]) -> None:
        """Add one micro-batch's shares; every micro-batch has the same names."""
        for name, share in shares.items():
            value = share.detach().double()
            self._values[name] = self._values[name] + value if name in self._values else value

    def over_ranks(self, engine: TrainingEngine) -> dict[str, float]:
        """The sums of all ranks, the same numbers on each; a collective."""
        names = sorted(self._values)
        total = engine.all_sum(torch.stack([self._values[name] for name in names]))
        return dict(zip(names, total.tolist(), strict=True))


def plan_of_rank(examples: Sequence[Example], engine: TrainingEngine, settings: EngineSettings) -> list[list[int]]:
    """This rank's micro-batches of a global batch as indices, as many as every other rank has; some may be empty."""
    layouts = engine.module.layouts
    lengths = [line_tokens(e.rows, shared=layouts.shared) if layouts.packed else e.padded_tokens for e in examples]
    return micro_batches(lengths, settings.micro_batch_tokens, engine.world_size, layouts.packed)[engine.rank]


def batch_of(rows: Sequence[TokenRow], engine: TrainingEngine, pad_id: int) -> ModelBatch:
    """One forward pass on the engine's device, laid out as its module can compute it."""
    layouts = engine.module.layouts
    return collate(rows, pad_id=pad_id, packed=layouts.packed, shared=layouts.shared).to(engine.device)


def stop_if_requested(engine: TrainingEngine, resume: Path) -> None:
    """Raise `PreemptedError` on every rank alike once rank 0 sees the stop file; a collective."""
    if agreed(engine, engine.rank == 0 and stop_requested(resume)):
        raise PreemptedError("asked to stop; what was done so far is saved")


def agreed(engine: TrainingEngine, answer: bool) -> bool:
    """Rank 0's answer, on every rank; a collective."""
    return bool(engine.all_sum(torch.tensor(float(engine.rank == 0 and answer), device=engine.device)).item())


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
