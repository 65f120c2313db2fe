"""What the tests run on every rank; in a module of its own, so that Ray's workers can import it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch

from data_processing.errors import DivergedError
from rlhf_core.engine.checkpoint import latest_checkpoint
from rlhf_core.engine.distributed import init_distributed, rank, world_size
from rlhf_core.engine.engine import TrainingEngine
from rlhf_core.models.layouts import Layouts
from rlhf_core.models.load import load_lm
from rlhf_core.models.modules import PolicyModule
from tests.engine.training import Outcome, Run, start, step, token_rows, train


def fail_on_rank_one(kind: str) -> None:
    init_distributed(torch.device("cpu"))
    if rank() == 1:
        if kind == "diverged":
            raise DivergedError("loss is nan")
        if kind == "crash":
            os._exit(3)
        raise ValueError("wrong shape")
    time.sleep(300)


def who_am_i(job: None) -> tuple[int, int, int]:
    init_distributed(torch.device("cpu"))
    return rank(), world_size(), torch.get_num_threads()


def save_and_resume(job: tuple[Run, Path]) -> list[bool]:
    """On each rank: stop after one step, go on in a new engine; compare with the engine that never stopped."""
    run, resume = job
    engine = start(run)
    step(engine, run, token_rows())
    engine.save(resume / "one", {})
    drawn = torch.rand(3)
    step(engine, run, token_rows())
    found = latest_checkpoint(resume)
    resumed = start(run)
    resumed.load(found or resume)
    same_random = torch.equal(torch.rand(3), drawn)
    step(resumed, run, token_rows())
    pairs = zip(engine.module.parameters(), resumed.module.parameters(), strict=True)
    return [same_random, all(torch.equal(a, b) for a, b in pairs)]


def train_each(runs: list[Run]) -> list[Outcome]:
    return [train(run) for run in runs]


def layouts_where_rank_one_pads(run: Run) -> Layouts:
    """The layouts that an engine's ranks go by after one of them could not pack."""
    module = PolicyModule(load_lm(run.model, dtype=run.engine.dtype, attention="sdpa"))
    if os.environ["RANK"] == "1":
        module.layouts = Layouts(packed=False, shared=False)
    layouts: Layouts = TrainingEngine(module, optimizer=run.optimizer, engine=run.engine, total_steps=1).module.layouts
    return layouts
