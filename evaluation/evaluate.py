"""One model measured on the test split: answers, scores, intervals. The story of the evaluate stage, top to bottom."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from data_processing.errors import ConfigError, DivergedError
from evaluation.bootstrap import Resampling
from evaluation.evaluation_artifact import (
    IntervalTable,
    intervals_json,
    read_evaluation,
    write_json,
    write_predictions,
    write_scores,
)
from evaluation.generate import generate_answers
from evaluation.job import Answer, EvaluationJob
from evaluation.metrics import METRICS, NotMeasured
from evaluation.row_reading import read_held_out
from evaluation.scores import Score


def evaluate(job: EvaluationJob) -> IntervalTable:
    """Measure `job.model` and write the evaluation artifact into `job.output`; returns `{decoding: {metric: Interval}}`.

    Raises `ConfigError` where a metric cannot apply or none is left, `DataError` where the test split is unusable,
    `DivergedError` for a score that is not finite.
    """
    job.output.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    if "perplexity" in job.config.metrics:
        # Rows that do not fit the model are known before anything is generated.
        read_held_out(job)
    answers = generate_answers(job)
    write_predictions(job.output, (answer.to_row(job.model_name) for answer in answers))
    generated = time.monotonic()
    scores = _score(job, answers)
    write_scores(job.output, scores)
    config = job.config
    resampling = Resampling(resamples=config.bootstrap_resamples, confidence=config.confidence, seed=job.seed)
    evaluation = read_evaluation(job.output)
    table = evaluation.intervals(resampling)
    write_json(
        job.output / "metrics.json",
        {
            "rows": {name: counts.to_json() for name, counts in job.counts.items()},
            "metrics": intervals_json(table),
            "sources": {source: intervals_json(part) for source, part in evaluation.source_intervals(resampling).items()},
        },
    )
    job.events.summary({**_flat(table), "generate_s": generated - started, "score_s": time.monotonic() - generated})
    return table


def _score(job: EvaluationJob, answers: Sequence[Answer]) -> list[Score]:
    """Scores of every metric that can be measured; those whose input is absent are left out with a warning."""
    scores: list[Score] = []
    total = len(job.config.metrics) + 1
    for done, name in enumerate(job.config.metrics, 1):
        job.events.progress(done, total, f"measuring {name}")
        try:
            scores += METRICS[name](job, answers)
        except NotMeasured as absent:
            job.events.warn(f"metric '{name}' is left out: {absent}")
    if not scores:
        raise ConfigError(f"evaluate.metrics: none of {job.config.metrics} can be measured here; allowed: {sorted(METRICS)}")
    _require_finite(scores)
    job.events.progress(total, total, "done")
    return scores


def _require_finite(scores: Sequence[Score]) -> None:
    broken = [score for score in scores if not math.isfinite(score.value)]
    if broken:
        raise DivergedError(
            f"{len(broken)} scores are not finite, the first is {broken[0].measure.name}={broken[0].value} of answer "
            f"{broken[0].answer_id}: the model or the reward model gives NaN or infinite numbers; look at its training"
        )


def _flat(table: IntervalTable) -> dict[str, Any]:
    """`{"sampled.procedures.score": mean, ..._low, ..._high}` for trackers."""
    flat: dict[str, Any] = {}
    for decoding, metrics in table.items():
        for metric, interval in metrics.items():
            name = f"{decoding}.{metric}"
            flat |= {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return flat
