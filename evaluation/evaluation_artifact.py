"""The `evaluation` artifact: what it holds, how it is written and read back. Knows no model and no torch."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from data_processing.errors import DataError
from data_processing.schemas import read_table, to_table, write_table
from evaluation.bootstrap import Interval, Resampling
from evaluation.scores import Measure, Score, UnitValues, unit_values

Row = Mapping[str, Any]
IntervalTable = dict[str, dict[str, Interval]]


@dataclass(frozen=True)
class Evaluation:
    """One model's answers and scores: rows of `predictions` and `scores`, and the measures the scores are of.

    `counts` says by table how many rows were measured, as `RowCounts.to_json` does.
    """

    predictions: Sequence[Row]
    scores: Sequence[Row]
    measures: Mapping[str, Measure]
    counts: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def values(self) -> dict[str, dict[str, UnitValues]]:
        """`{decoding: {metric: values a prompt}}`, ready to be paired with another evaluation's."""
        return unit_values(self.scores, self.predictions, self.measures)

    @cached_property
    def scores_by_answer(self) -> dict[str, list[Row]]:
        """Prediction id -> its rows of the `scores` table."""
        grouped: dict[str, list[Row]] = defaultdict(list)
        for row in self.scores:
            grouped[row["prediction_id"]].append(row)
        return dict(grouped)

    def intervals(self, resampling: Resampling) -> IntervalTable:
        """`{decoding: {metric: Interval}}` over all prompts."""
        return {
            decoding: {metric: values.interval(resampling) for metric, values in metrics.items()}
            for decoding, metrics in self.values.items()
        }

    @cached_property
    def prompts_of_source(self) -> dict[str, set[str]]:
        """Source -> ids of its prompts, by name; held-out rows have none."""
        grouped: dict[str, set[str]] = defaultdict(set)
        for row in self.predictions:
            if row.get("source") is not None:
                grouped[row["source"]].add(row["prompt_id"])
        return dict(sorted(grouped.items()))

    def source_intervals(self, resampling: Resampling) -> dict[str, IntervalTable]:
        """The intervals over the prompts of each source."""
        tables: dict[str, IntervalTable] = {}
        for source, prompts in self.prompts_of_source.items():
            for decoding, metrics in self.values.items():
                parts = {metric: part for metric, values in metrics.items() if (part := values.of(prompts)) is not None}
                tables.setdefault(source, {})[decoding] = {metric: part.interval(resampling) for metric, part in parts.items()}
        return tables


def write_predictions(folder: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write `predictions.parquet` (see data_processing/schemas.py)."""
    write_table("predictions", to_table("predictions", rows), folder / "predictions.parquet")


def write_scores(folder: Path, scores: Sequence[Score]) -> None:
    """Write `scores.parquet` and `measures.json`, which says what each metric of the scores is."""
    write_table("scores", to_table("scores", (score.to_row() for score in scores)), folder / "scores.parquet")
    measures = {score.measure.name: score.measure.to_json() for score in scores}
    write_json(folder / "measures.json", measures)


def read_evaluation(folder: Path) -> Evaluation:
    """Read what an evaluation wrote; raises `DataError` naming a missing or unreadable file.

    Counts are those of `metrics.json`; an evaluation without that file has none.
    """
    measures = read_json(folder / "measures.json")
    return Evaluation(
        predictions=read_table("predictions", folder / "predictions.parquet").to_pylist(),
        scores=read_table("scores", folder / "scores.parquet").to_pylist(),
        measures={name: Measure(**fields) for name, fields in measures.items()},
        counts=read_json(folder / "metrics.json")["rows"] if (folder / "metrics.json").is_file() else {},
    )


def intervals_json(table: IntervalTable) -> dict[str, dict[str, dict[str, float | int]]]:
    """`{decoding: {metric: {mean, low, high, n}}}`."""
    return {decoding: {metric: interval.to_json() for metric, interval in metrics.items()} for decoding, metrics in table.items()}


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON, keys in the order given; non-finite numbers are refused."""
    path.write_text(json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read JSON; raises `DataError` where the file is missing or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}; is the artifact of another version?") from error
