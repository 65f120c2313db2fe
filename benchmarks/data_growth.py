"""Time and memory of data preparation as the number of rows grows, JSONL to Parquet.

    python benchmarks/data_growth.py

Every point is a preparation in a process of its own, of a file made for it in a temporary folder: chats of four turns and
about 1.2 kB, and at one size the other usual shapes. Recorded are seconds and CPU-seconds of `prepare`, MB (10^6 bytes) of
JSONL a second, and the peak resident memory of the process. The first ten rows are prepared before, for what happens once in a
process (libraries are loaded): that is `start_up_s`, and its memory `before_mib`. Exponents are least-squares slopes of logarithms.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "data_preparation.json"
SIZES = (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
OTHER_SHAPES_ROWS = 100_000
LETTERS = "etaoinshrdlucmfwypvbgkjqxz"

Texts = Callable[[int], str]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the growth of data preparation")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="rows of the chat files")
    parser.add_argument("--shape-rows", type=int, default=OTHER_SHAPES_ROWS, help="rows of the files of other shapes")
    parser.add_argument("--out", type=Path, default=RESULT, help="JSON file for the figures")
    parser.add_argument("--prepare", nargs=2, metavar=("TABLE", "FILE"), help=argparse.SUPPRESS)  # one point, in its process
    arguments = parser.parse_args()
    if arguments.prepare:
        print(json.dumps(prepared(*arguments.prepare)))
        return
    result = measured(arguments.sizes, arguments.shape_rows)
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result["fits"], indent=2))


def measured(sizes: list[int], shape_rows: int) -> dict[str, Any]:
    """Points of all sizes and shapes, and the fits over the chats."""
    chats = [point("chat", rows) for rows in sizes]
    others = [point(shape, shape_rows) for shape in SHAPES if shape != "chat"]
    return {
        "title": "Data preparation: JSONL to Parquet",
        "points": [*chats, *others],
        "fits": fits(chats),
        "machine": {"cpu_count": os.cpu_count(), "processor": platform.machine(), "python": platform.python_version()},
    }


def point(shape: str, rows: int) -> dict[str, Any]:
    """One file written, prepared by a fresh process, and deleted."""
    table, make = SHAPES[shape]
    with tempfile.TemporaryDirectory(prefix="data_growth") as folder:
        file = Path(folder) / "rows.jsonl"
        with file.open("w", encoding="utf-8") as stream:
            texts = _texts(random.Random(0))
            stream.writelines(json.dumps(make(texts, number)) + "\n" for number in range(rows))
        command = [sys.executable, str(Path(__file__)), "--prepare", table, str(file)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
        figures = json.loads(done.stdout)
        megabytes = file.stat().st_size / 1e6
    megabytes_per_s = round(megabytes / figures["wall_s"], 1)
    values = {"shape": shape, "rows": rows, "megabytes": round(megabytes, 2), "megabytes_per_s": megabytes_per_s, **figures}
    print(values, flush=True)
    return values


def prepared(table: str, file: str) -> dict[str, float]:
    """What the preparation of one file takes in this process."""
    from data_processing.config import DataConfig
    from data_processing.prepare import prepare

    def timed(**source: Any) -> tuple[float, float]:
        config = DataConfig.model_validate({"procedures": None, table: [{"path": file, **source}]})
        started_s, started_cpu_s = time.perf_counter(), time.process_time()
        with tempfile.TemporaryDirectory(dir=Path(file).parent) as output:
            prepare(config, Path(output), seed=0)
            return time.perf_counter() - started_s, time.process_time() - started_cpu_s

    start_up_s, _ = timed(max_rows=10)
    before_mib = _peak_mib()
    wall_s, cpu_s = timed()
    seconds = {"wall_s": round(wall_s, 4), "cpu_s": round(cpu_s, 4), "start_up_s": round(start_up_s, 3)}
    return {**seconds, "peak_mib": round(_peak_mib(), 1), "before_mib": round(before_mib, 1)}


def fits(points: list[dict[str, Any]]) -> dict[str, float]:
    """Exponents of growth over all points, and bytes of memory for each further row by the line through them."""
    rows = np.array([p["rows"] for p in points], float)
    return {
        "seconds_exponent": _slope(np.log(rows), np.log([p["wall_s"] for p in points])),
        "cpu_seconds_exponent": _slope(np.log(rows), np.log([p["cpu_s"] for p in points])),
        "peak_memory_exponent": _slope(np.log(rows), np.log([p["peak_mib"] for p in points])),
        "peak_bytes_per_row": _slope(rows, np.array([p["peak_mib"] for p in points]) * 2**20),
    }


def _slope(x: Any, y: Any) -> float:
    return round(float(np.polyfit(x, y, 1)[0]), 3)


def _peak_mib() -> float:
    """Peak resident memory of this process alone: getrusage would report that of the process it was forked from."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


def _texts(rng: random.Random) -> Texts:
    """Texts of about so many characters out of a pool of sentences."""
    words = ["".join(rng.choices(LETTERS, range(len(LETTERS), 0, -1), k=rng.randint(1, 10))) for _ in range(5000)]
    sentences = [" ".join(rng.choices(words, k=rng.randint(5, 15))).capitalize() + "." for _ in range(20_000)]

    def text(length: int) -> str:
        return " ".join(rng.choices(sentences, k=max(1, length // 60)))

    return text


def _chat(text: Texts, number: int) -> dict[str, Any]:
    roles_and_lengths = (("user", 240), ("assistant", 300), ("user", 120), ("assistant", 300))
    turns = [{"role": role, "content": text(length)} for role, length in roles_and_lengths]
    turns[0]["content"] = f"Question {number}: {turns[0]['content']}"
    return {"messages": turns}


def _answer(text: Texts, number: int) -> dict[str, Any]:
    return {"prompt": f"Question {number}: {text(300)}", "response": text(660)}


def _pair(text: Texts, number: int) -> dict[str, Any]:
    return {"prompt": f"Question {number}: {text(240)}", "chosen": text(360), "rejected": text(360)}


SHAPES: dict[str, tuple[str, Callable[[Texts, int], dict[str, Any]]]] = {
    "chat": ("sft", _chat),
    "prompt and response": ("sft", _answer),
    "pair": ("preference", _pair),
}


if __name__ == "__main__":
    main()
