"""Log-probs of the reference model, computed once a run and kept beside its checkpoints.

The file is written while the pass goes on, with NaN for the pairs that are still to be scored, so an attempt that is ended
in the middle leaves what it has scored to the next one.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from data_processing.errors import PreemptedError
from data_processing.file_hash import file_sha256
from data_processing.pace import Pace
from rlhf_core.engine.engine import TrainingEngine
from rlhf_core.recipes.examples import Example, Splits, digest
from rlhf_core.recipes.job import TrainingJob
from rlhf_core.recipes.loop import agreed, batch_of, plan_of_rank, stop_if_requested

# What a kill costs; the file has 8 bytes a pair, so writing it takes no time beside this.
WRITE_EVERY_S = 60.0


def with_reference_logps(job: TrainingJob[Any], engine: TrainingEngine, splits: Splits, pad_id: int) -> Splits:
    """The same examples with `reference_logps` filled in: those that earlier attempts scored from their file, the rest now.

    The engine must still hold the reference: fresh adapters or untouched weights. Raises `PreemptedError` when asked to stop.
    """
    examples = [*splits.train, *splits.validation]
    if engine.rank == 0:
        job.events.progress(0, len(examples), f"reference log-probs of {len(examples)} pairs")
    scoring = _Pass(job, engine, examples, pad_id)
    logps = scoring.run().tolist()
    filled = [replace(e, reference_logps=tuple(row[: len(e.rows)])) for e, row in zip(examples, logps, strict=True)]
    return replace(splits, train=filled[: len(splits.train)], validation=filled[len(splits.train) :])


class _Pass:
    """One attempt at the summed response log-probs of chosen and rejected, fp32 [len(examples), 2]; each rank scores its share.

    A single answer has the first column, and 0 in the second.

    Only the first rank reads and writes the file, so that ranks never differ in what they find there.
    """

    def __init__(self, job: TrainingJob[Any], engine: TrainingEngine, examples: Sequence[Example], pad_id: int) -> None:
        self._job, self._engine, self._examples, self._pad_id = job, engine, examples, pad_id
        known = torch.zeros(len(examples), 2)
        if engine.rank == 0:
            self._path = job.resume / f"reference_logps-{numbers_key(job, examples)[:16]}.safetensors"
            known = _read(self._path, len(examples))
        self._known = engine.all_sum(known.to(engine.device))
        # Log-probs that this rank adds, and in the third column 1 where it does.
        self._added = torch.zeros(len(examples), 3, device=engine.device)

    def run(self) -> Tensor:
        """Score what is missing; returns all log-probs, on the CPU."""
        plan = plan_of_rank(self._examples, self._engine, self._job.config.engine)
        left = self._left(plan)
        try:
            with self._engine.evaluating():
                self._score(plan, left)
        except PreemptedError:
            self._write()
            raise
        return (self._write() if left else self._known).cpu()

    def _left(self, plan: Sequence[Sequence[int]]) -> list[int]:
        """Numbers of the micro-batches in which some rank has a pair without log-probs: ranks go through the same ones."""
        missing = self._known.isnan().any(1).tolist()
        mine = torch.tensor([float(any(missing[i] for i in indices)) for indices in plan], device=self._engine.device)
        numbers: list[int] = self._engine.all_sum(mine).nonzero().flatten().tolist()
        return numbers

    def _score(self, plan: Sequence[Sequence[int]], left: Sequence[int]) -> None:
        engine, job = self._engine, self._job
        pace, written = Pace(), time.monotonic()
        for done, number in enumerate(left, start=1):
            stop_if_requested(engine, job.resume)
            if agreed(engine, time.monotonic() - written > WRITE_EVERY_S):
                self._write()
                written = time.monotonic()
            places = [(i, column) for i in plan[number] for column in range(len(self._examples[i].rows))]
            rows = [self._examples[i].rows[column] for i, column in places]
            logprobs_BT, _ = engine.module(batch_of(rows, engine, self._pad_id))
            if places:
                self._added[tuple(torch.tensor(places, device=engine.device).T)] = logprobs_BT.sum(1).float()
            self._added[plan[number], 2] = 1
            if engine.rank == 0:
                self._report(len(plan) - len(left) + done, len(plan), pace.left(done, len(left)))

    def _report(self, done: int, total: int, left: str) -> None:
        self._job.events.progress(done, total, f"reference log-probs: micro-batch {done} of {total} ({done / total:.0%}){left}")

    def _write(self) -> Tensor:
        """Write what all ranks have so far, NaN where nobody has; returns it. A collective."""
        added = self._engine.all_sum(self._added)
        logps = torch.where(added[:, 2:] > 0, added[:, :2], self._known)
        if self._engine.rank == 0:
            _replace(self._path, logps.cpu())
        return logps


def numbers_key(job: TrainingJob[Any], examples: Sequence[Example]) -> str:
    """Digest of what numbers that a frozen model gives of rows depend on: rows (and so template and tokenizer), model files, arithmetic."""
    settings = job.config.engine
    parts = [digest(examples), job.model_sha256 or _folder_sha256(job.model), settings.precision, settings.attention]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@cache
def _folder_sha256(folder: Path) -> str:
    """Of the names and bytes of its files; a model's folder does not change while a run reads it."""
    files = {path.name: file_sha256(path) for path in sorted(folder.iterdir()) if path.is_file()}
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def _read(path: Path, n_examples: int) -> Tensor:
    """The numbers in `path`; all NaN where it is not there or not whole, in which case they are computed again."""
    nothing = torch.full((n_examples, 2), torch.nan)
    try:
        logps = load_file(path)["logps"]
    except (OSError, KeyError, SafetensorError):
        return nothing
    return logps if logps.shape == nothing.shape else nothing


def _replace(path: Path, logps: Tensor) -> None:
    """All or nothing: a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    save_file({"logps": logps.contiguous()}, part)
    with part.open("rb") as stream:
        os.fsync(stream.fileno())
    part.rename(path)
