"""Log-probs of the reference model, computed once a run and kept beside its checkpoints."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlhf_core.engine.engine import TrainingEngine
from rlhf_core.recipes.examples import Example, Splits, digest
from rlhf_core.recipes.job import TrainingJob
from rlhf_core.recipes.loop import batch_of, plan_of_rank, stop_if_requested


def with_reference_logps(job: TrainingJob[Any], engine: TrainingEngine, splits: Splits, pad_id: int) -> Splits:
    """The same examples with `reference_logps` filled in, from the file of an earlier attempt or by scoring them now.

    The engine must still hold the reference: fresh adapters or untouched weights. Raises `PreemptedError` when asked to stop.
    """
    examples = [*splits.train, *splits.validation]
    path = job.resume / f"reference_logps-{_key(job, examples)[:16]}.safetensors"
    logps = _read(path, len(examples))
    if logps is None:
        logps = _compute(job, engine, examples, pad_id)
        if engine.rank == 0:
            _write(path, logps)
    filled = [replace(e, reference_logps=tuple(row)) for e, row in zip(examples, logps.tolist(), strict=True)]
    return replace(splits, train=filled[: len(splits.train)], validation=filled[len(splits.train) :])


def _compute(job: TrainingJob[Any], engine: TrainingEngine, examples: Sequence[Example], pad_id: int) -> Tensor:
    """Summed response log-probs of chosen and rejected, fp32 [len(examples), 2] on the CPU; each rank scores its share."""
    logps = torch.zeros(len(examples), 2, device=engine.device)
    plan = plan_of_rank(examples, engine, job.config.engine)
    with engine.evaluating():
        for number, indices in enumerate(plan):
            stop_if_requested(engine, job.resume)
            rows = [row for i in indices for row in examples[i].rows]
            logprobs_BT, _ = engine.module(batch_of(rows, engine, pad_id))
            logps[indices] = logprobs_BT.sum(1).view(-1, 2)
            if engine.rank == 0:
                job.events.progress(number + 1, len(plan), f"reference log-probs: micro-batch {number + 1} of {len(plan)}")
    return engine.all_sum(logps).cpu()


def _key(job: TrainingJob[Any], examples: Sequence[Example]) -> str:
    """Digest of what the numbers depend on: rows (and so template and tokenizer), model files, arithmetic."""
    files = {path.name: _sha256(path) for path in sorted(job.model.iterdir()) if path.is_file()}
    settings = job.config.engine
    parts = [digest(examples), files, settings.dtype, settings.attention]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _read(path: Path, n_examples: int) -> Tensor | None:
    """The numbers in `path`; None where it is not there or not whole, in which case they are computed again."""
    try:
        logps = load_file(path)["logps"]
    except (OSError, KeyError, SafetensorError):
        return None
    return logps if logps.shape == (n_examples, 2) else None


def _write(path: Path, logps: Tensor) -> None:
    """All or nothing: a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    save_file({"logps": logps.contiguous()}, part)
    with part.open("rb") as stream:
        os.fsync(stream.fileno())
    part.rename(path)
