"""CPU time of everything that goes through all rows of a table, or all lines of a journal, as their number grows.

    python benchmarks/rows_growth.py

Every point is a process of its own, on one thread. Work on rows is timed without what it is given. A start is a recipe from its
prepared parquet table of short conversations to the metrics of its first optimizer step, with a tiny model, LoRA and the
default settings; start-up of the libraries and, for DPO and KTO, the reference's pass over all pairs are in it. Exponents are
least-squares slopes of logarithms over all sizes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "rows_growth.json"
SIZES = (1_000, 10_000, 100_000)
FIRST_STEP_LIMIT_S = 180.0
MICRO_BATCH_TOKENS = 2048
WORDS = [
    "refund",
    "order",
    "approve",
    "reject",
    "policy",
    "ticket",
    "account",
    "question",
    "answer",
    "manager",
    "step",
    "receipt",
]

Seconds = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure how the work on all rows grows with them")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of rows")
    parser.add_argument("--what", nargs="+", help="pieces of work, where not all; the result is printed alone")
    parser.add_argument("--out", type=Path, default=RESULT, help="JSON file for the figures")
    parser.add_argument("--point", nargs=2, metavar=("WHAT", "ROWS"), help=argparse.SUPPRESS)  # one point, in its process
    arguments = parser.parse_args()
    if arguments.point:
        print(json.dumps(point(arguments.point[0], int(arguments.point[1]))))
        return
    if arguments.what:
        for what in arguments.what:
            line(what, arguments.sizes)
        return
    result = measured(arguments.sizes)
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")


def measured(sizes: list[int]) -> dict[str, Any]:
    """All points, and the exponent of each line of them."""
    machine = {"cpu_count": os.cpu_count(), "processor": platform.machine(), "python": platform.python_version()}
    return {
        "title": "Work on all rows",
        "first_step_limit_s": FIRST_STEP_LIMIT_S,
        "lines": [line(what, sizes) for what in (*WORK, *STARTS)],
        "machine": machine,
    }


def line(what: str, sizes: list[int]) -> dict[str, Any]:
    """One piece of work at all sizes."""
    points = [{"rows": rows, **_in_own_process(what, rows)} for rows in sizes]
    slope = np.polyfit(np.log(sizes), np.log([point["cpu_s"] for point in points]), 1)[0]
    values = {"what": what, "is_start": what in STARTS, "points": points, "cpu_seconds_exponent": round(float(slope), 2)}
    print(values, flush=True)
    return values


def _in_own_process(what: str, rows: int) -> Seconds:
    command = [sys.executable, str(Path(__file__)), "--point", what, str(rows)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    seconds: Seconds = json.loads(done.stdout.splitlines()[-1])
    return seconds


def point(what: str, n_rows: int) -> Seconds:
    """Seconds of `what` with `n_rows`, in this process."""
    with tempfile.TemporaryDirectory(prefix="rows_growth") as folder:
        work = WORK[what](n_rows, Path(folder)) if what in WORK else _start(what, n_rows, Path(folder))
        started_s, started_cpu_s = time.perf_counter(), time.process_time()
        work()
        wall_s, cpu_s = time.perf_counter() - started_s, time.process_time() - started_cpu_s
    return {"wall_s": round(wall_s, 5), "cpu_s": round(cpu_s, 5)}


def _lengths(n_rows: int) -> list[int]:
    rng = random.Random(0)
    return [min(MICRO_BATCH_TOKENS, int(rng.lognormvariate(5.5, 0.8)) + 5) for _ in range(n_rows)]


def _plan(packed: bool) -> Callable[[int, Path], Callable[[], object]]:
    def made(n_rows: int, folder: Path) -> Callable[[], object]:
        from rlhf_core.batching.balance import micro_batches

        lengths = _lengths(n_rows)
        return lambda: micro_batches(lengths, MICRO_BATCH_TOKENS, 2, packed)

    return made


def _plan_groups(n_rows: int, folder: Path) -> Callable[[], object]:
    from rlhf_core.batching.rows import TokenRow
    from rlhf_core.batching.sharing import plan_rows

    rows = [TokenRow.from_prompt_response([i // 8 + 1] * 50, [i] * (20 + i % 60)) for i in range(n_rows)]
    return lambda: plan_rows(rows, MICRO_BATCH_TOKENS, 2, packed=True, shared=True)


def _pairs(n_rows: int) -> list[Any]:
    from rlhf_core.batching.rows import TokenRow
    from rlhf_core.recipes.examples import Example

    def rows(i: int) -> Any:
        return tuple(TokenRow.from_prompt_response([i % 500] * 40, [j] * (20 + i % 40)) for j in range(2))

    return [Example(f"pair{i}", rows(i)) for i in range(n_rows)]


def _digest(n_rows: int, folder: Path) -> Callable[[], object]:
    from rlhf_core.recipes.examples import digest

    examples = _pairs(n_rows)
    return lambda: digest(examples)


def _mismatched(n_rows: int, folder: Path) -> Callable[[], object]:
    from rlhf_core.recipes.kto import mismatched

    examples = _pairs(n_rows)
    return lambda: mismatched(examples, 4096)


def _epoch(n_rows: int, folder: Path) -> Callable[[], object]:
    from rlhf_core.recipes.cursor import plan_cursor
    from rlhf_core.settings.supervised import SftConfig

    cursor = plan_cursor(SftConfig(batch_size=64), _prompts(n_rows), 0)
    return lambda: [cursor.batch(step) for step in range(cursor.total_steps)]


def _rounds(n_rows: int, folder: Path) -> Callable[[], object]:
    from rlhf_core.recipes.row_order import RowOrder
    from rlhf_core.settings.training import OrderSettings

    stream = RowOrder(OrderSettings(), _prompts(n_rows), 0, n_rows)
    return lambda: [stream.at(64 * step, 64) for step in range(n_rows // 64)]


def _prompts(n_rows: int) -> list[Any]:
    from rlhf_core.recipes.prompts import Prompt

    return [Prompt(str(i), [], None, [i]) for i in range(n_rows)]


def _render(n_rows: int, folder: Path) -> Callable[[], object]:
    from functools import partial

    from rlhf_core.batching.templates import Renderer
    from rlhf_core.models.load import load_tokenizer
    from rlhf_core.recipes.examples import pair, read_examples
    from tests.tiny_models import tiny_model

    data = _write("preference", n_rows, folder)
    render = partial(pair, Renderer(load_tokenizer(tiny_model(folder))))
    return lambda: read_examples(data, "preference", "train", render)


def _draw(n_rows: int, folder: Path) -> Callable[[], object]:
    from evaluation.row_selection import draw_rows

    ids, sources = [f"row{i}" for i in range(n_rows)], [f"source{i % 7}" for i in range(n_rows)]
    return lambda: draw_rows(ids, sources, n_rows // 2, 0)


def _values(n_rows: int, folder: Path) -> Callable[[], object]:
    from evaluation.scores import Measure, unit_values

    predictions = [{"id": str(i), "decoding": "greedy", "prompt_id": str(i)} for i in range(n_rows)]
    scores = [{"prediction_id": str(i), "metric": "length", "value": float(i), "detail": None} for i in range(n_rows)]
    return lambda: unit_values(scores, predictions, {"length": Measure("length", "Length")})


def _events(n_rows: int, folder: Path) -> Any:
    from rlhf_core.events import EventLog

    log = EventLog(folder / "events.jsonl")
    for step in range(n_rows):
        log.metrics(step, {"loss": 1.0, "grad_norm": 0.5})
    return log


def _follow(n_rows: int, folder: Path) -> Callable[[], object]:
    """The log is looked at while it grows, every ten lines."""
    from rlhf_core.events import EventLog
    from tasks.runtime.execution.event_tail import EventTail

    log = EventLog(folder / "events.jsonl")
    tail = EventTail(log.path)

    def follow() -> None:
        for step in range(n_rows):
            log.progress(step, n_rows, "step")
            if step % 10 == 0:
                tail.read()

    return follow


def _curves(n_rows: int, folder: Path) -> Callable[[], object]:
    from evaluation.report.data import _curves, _events

    path = _events_path(n_rows, folder)
    return lambda: _curves(list(_events(path)))


def _events_path(n_rows: int, folder: Path) -> Path:
    path: Path = _events(n_rows, folder).path
    return path


def _journal(n_rows: int, folder: Path) -> Callable[[], object]:
    """The journal is read as the sender does, from where it was, to its end."""
    from tasks.runtime.tracking.journal import Journal

    journal = Journal(folder)
    for step in range(n_rows):
        journal.append("metrics", "node", step=step, values={"loss": 1.0})

    def read() -> None:
        offset = 0
        while operations := journal.read(offset):
            offset = operations[-1][1]

    return read


def _home_with_runs(n_rows: int, folder: Path) -> Any:
    """A run for every hundred rows, all of them over."""
    from tasks.runtime.contract.home import Home
    from tasks.runtime.contract.run_state import STATUS_FILE

    home = Home.open(folder / "home")
    for number in range(n_rows // 100):
        run = home.run(f"run-{number}")
        (run / "config.yaml").write_text("run: {name: run}\n")
        (run / STATUS_FILE).write_text(json.dumps({"status": "finished", "began": float(number), "at": float(number)}))
    return home


def _dead_runs(n_rows: int, folder: Path) -> Callable[[], object]:
    from flows.running.dead_runs import close_dead_runs

    home = _home_with_runs(n_rows, folder)
    return lambda: close_dead_runs(home)


def _listed_runs(n_rows: int, folder: Path) -> Callable[[], object]:
    from flows.running.run_folder import run_folders

    home = _home_with_runs(n_rows, folder)
    return lambda: run_folders(home)


WORK: Mapping[str, Callable[[int, Path], Callable[[], object]]] = {
    "plan of micro-batches, packed": _plan(packed=True),
    "plan of micro-batches, padded": _plan(packed=False),
    "plan of groups of 8 with one prompt": _plan_groups,
    "digest of pairs": _digest,
    "KTO's mismatched pairs": _mismatched,
    "batches of an epoch": _epoch,
    "prompts of the rounds of an epoch": _rounds,
    "reading and tokenising pairs": _render,
    "draw of half the test rows": _draw,
    "values a prompt from scores": _values,
    "curves of a report from events": _curves,
    "events, followed while written": _follow,
    "journal, read by the sender": _journal,
    "look for dead runs, among a hundredth as many": _dead_runs,
    "list of runs, a hundredth as many": _listed_runs,
}
STARTS: Mapping[str, str] = {
    "start to first step, SFT": "sft",
    "start to first step, reward model": "reward_model",
    "start to first step, DPO": "dpo",
    "start to first step, KTO": "kto",
}


class FirstStep(Exception):
    """The first optimizer step is done; a start ends here."""


def _start(what: str, n_rows: int, folder: Path) -> Callable[[], object]:
    from rlhf_core.events import EventLog
    from rlhf_core.recipes.job import TrainingJob
    from rlhf_core.settings.preference import PreferenceConfig
    from rlhf_core.settings.supervised import RewardModelConfig, SftConfig
    from rlhf_core.settings.training import TrainingConfig
    from tests.tiny_models import tiny_model

    @dataclass(frozen=True)
    class UntilFirstStep(EventLog):
        def metrics(self, step: int, values: Mapping[str, float]) -> None:
            raise FirstStep

    name = STARTS[what]
    configs: dict[str, TrainingConfig] = {
        "sft": SftConfig(),
        "reward_model": RewardModelConfig(),
        "dpo": PreferenceConfig(),
        "kto": PreferenceConfig.model_validate({"method": "kto"}),
    }
    places = {
        "model": tiny_model(folder),
        "data": _write("sft" if name == "sft" else "preference", n_rows, folder),
        "output": folder / "output",
        "resume": folder / "resume",
    }
    job: TrainingJob[Any] = TrainingJob(configs[name], **places, seed=0, events=UntilFirstStep(folder / "events.jsonl"))

    def start() -> None:
        from rlhf_core.cluster.launch import launch
        from rlhf_core.cluster.resources import ranks
        from rlhf_core.recipes.preference import train_preference
        from rlhf_core.recipes.reward_model import train_reward_model
        from rlhf_core.recipes.sft import train_sft

        train: Any = {"sft": train_sft, "reward_model": train_reward_model}.get(name, train_preference)
        try:
            launch(train, job, resources=ranks(1), threads=1)
        except FirstStep:
            return
        raise AssertionError("the recipe ended without a step")

    return start


def _write(table: Any, n_rows: int, folder: Path) -> Path:
    """A prepared data folder of conversations of 8 to 24 words a turn."""
    from data_processing.schemas import to_table, write_table

    rng = random.Random(0)

    def turn(role: str) -> dict[str, str]:
        return {"role": role, "content": " ".join(rng.choices(WORDS, k=rng.randint(8, 24)))}

    def row(i: int) -> dict[str, Any]:
        if table == "sft":
            return {"id": f"row{i}", "messages": [turn("user"), turn("assistant")]}
        answers = {name: [turn("assistant")] for name in ("chosen", "rejected")}
        return {"id": f"row{i}", "prompt": [turn("user")], **answers, "margin": None, "detail": None}

    write_table(table, to_table(table, map(row, range(n_rows))), folder / "data" / table / "train.parquet")
    return folder / "data"


if __name__ == "__main__":
    main()
