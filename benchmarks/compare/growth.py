"""How a training step grows with sequence length and vocabulary: CPU seconds and peak memory, with the fitted exponents."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from compare import machine
from compare.cases import Row, Scale, ours
from compare.duel import SEED, duel
from compare.verdict import measured
from compare.workload import RowMaker, Work, own_mib

LENGTHS = (128, 256, 512, 1024, 2048, 4096)
VOCABULARIES = (8_192, 16_384, 32_768, 65_536, 151_936)
# Of which the first is dropped.
STEPS = 6
# What the chat template adds to the words of an answer.
TEMPLATE_TOKENS = 4

Point = dict[str, float]


def run(scale: Scale) -> dict[str, Any]:
    """Both curves as they are written: points and exponents."""
    vocabularies = VOCABULARIES if scale.peer else (256, 512)
    curves = {
        "tokens of the one sequence of a step": [_by_length(scale, n) for n in LENGTHS if n <= scale.tokens],
        "words in the vocabulary": [_by_vocabulary(scale, size) for size in vocabularies],
    }
    return {
        "title": "Training: growth with sequence length and vocabulary",
        "criteria": ["C10"],
        "machine": machine.facts(None),
        "curves": [
            {"x": x, "points": points, "exponents": {y: exponent(points, y) for y in ("cpu_s", "over_own_mib")}}
            for x, points in curves.items()
        ],
    }


def exponent(points: Sequence[Point], y: str) -> float | None:
    """Slope of log y over log x by least squares; None where there are not two positive points."""
    positive = [(point["x"], point[y]) for point in points if point[y] > 0]
    if len(positive) < 2:
        return None
    x_log, y_log = np.log(np.asarray(positive, dtype=np.float64)).T
    return float(np.polyfit(x_log, y_log, 1)[0])


def _by_length(scale: Scale, n_tokens: int) -> Point:
    """One sequence a step."""
    maker = RowMaker(scale.shape)
    return _point(scale, n_tokens, [[maker.sft(n_tokens - TEMPLATE_TOKENS)] for _ in range(STEPS)])


def _by_vocabulary(scale: Scale, size: int) -> Point:
    """A model of its own, at half the tokens a step."""
    shape = replace(scale.shape, vocabulary=size)
    maker = RowMaker(shape)
    steps = [[maker.sft(scale.tokens // 16 - TEMPLATE_TOKENS) for _ in range(8)] for _ in range(STEPS)]
    return _point(replace(scale, shape=shape), size, steps)


def _point(scale: Scale, x: int, steps: list[list[Row]]) -> Point:
    """Median CPU seconds, and peak memory (MiB) over libraries and model, of the steps after the first.

    Every point is a process of its own: what one that was larger has freed would count in its memory.
    """
    arm = ours("sft", steps, micro_batch_tokens=scale.tokens)
    with tempfile.TemporaryDirectory(prefix="af", dir="/tmp", ignore_cleanup_errors=True) as folder:
        work = Work(Path(folder))
        work.write("sft", scale.shape, steps, SEED)
        [done] = duel([arm], work.folder, len(steps))
        own = own_mib(work.model)
    return {
        "x": float(x),
        "cpu_s": statistics.median(taken.cpu_s for taken in done.taken),
        "over_own_mib": max(measured(done, taken, "over_own_mib", own) for taken in done.taken),
    }
