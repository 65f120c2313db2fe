"""What a measured number is, and how the scores of single answers become the statistic of a model.

Scores are kept per answer in the `scores` table. A unit is what is resampled: a prompt (all its sampled answers count
once), or a held-out row for metrics that need no generated answer.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from data_processing.errors import DataError
from evaluation.bootstrap import Bounds, Draws, Floats, Interval, Resampling, mean_interval, paired_draws

Better = Literal["higher", "lower", "neither"]
# The decoding of metrics on given answers, which nothing was generated for.
HELD_OUT = "held_out"
DECODINGS: tuple[str, ...] = ("sampled", "greedy", HELD_OUT)


@dataclass(frozen=True, slots=True)
class Measure:
    """One number an evaluation reports: its name, its title for people with the unit, and which way is better.

    `geometric` numbers are aggregated as geometric means (perplexity); `digits` is how many decimals people see. `lowest` and
    `highest` bound every value, where it has bounds: they make intervals hold for scores that are nearly all 0 or 1.
    """

    name: str
    title: str
    better: Better = "higher"
    geometric: bool = False
    digits: int = 2
    lowest: float | None = None
    highest: float | None = None

    @property
    def bounds(self) -> Bounds:
        """What a single value lies between."""
        return Bounds(self.lowest, self.highest)

    def to_json(self) -> dict[str, Any]:
        """The fields as a JSON object."""
        return asdict(self)


@dataclass(frozen=True)
class Score:
    """One value of one answer. `answer_id` is a prediction's id, or a held-out row's; `weight` counts in ratio metrics."""

    answer_id: str
    measure: Measure
    value: float
    weight: float | None = None
    faults: tuple[str, ...] = ()

    def to_row(self) -> dict[str, Any]:
        """A row of the `scores` table; weight and faults, where there are any, as JSON in `detail`."""
        detail: dict[str, Any] = {} if self.weight is None else {"weight": self.weight}
        if self.faults:
            detail["faults"] = list(self.faults)
        row = {"prediction_id": self.answer_id, "metric": self.measure.name, "value": self.value}
        return {**row, "detail": json.dumps(detail) if detail else None}


@dataclass(frozen=True)
class UnitValues:
    """A metric's value for each unit: `values[n]`, in the order of `units[n]`, with `weights[n]` for ratio metrics."""

    units: tuple[str, ...]
    values: Floats
    weights: Floats | None
    measure: Measure

    def interval(self, resampling: Resampling) -> Interval:
        """The statistic over all units with its interval."""
        geometric, bounds = self.measure.geometric, self.measure.bounds
        return mean_interval(self.values, resampling, weights=self.weights, geometric=geometric, bounds=bounds)

    def mean(self) -> float:
        """The statistic over all units."""
        values = np.log(self.values) if self.measure.geometric else self.values
        mean = float(np.average(values, weights=self.weights))
        return math.exp(mean) if self.measure.geometric else mean

    def of(self, units: Collection[str]) -> UnitValues | None:
        """The values of those of the given units that have one; None where none has."""
        kept = np.array([unit in units for unit in self.units])
        if not kept.any():
            return None
        names = tuple(unit for unit in self.units if unit in units)
        return UnitValues(names, self.values[kept], None if self.weights is None else self.weights[kept], self.measure)

    def difference(self, baseline: UnitValues, resampling: Resampling) -> Draws:
        """This model minus `baseline`, units paired by id; raises `DataError` unless both have the same units."""
        if self.units != baseline.units:
            only = sorted(set(self.units) ^ set(baseline.units))
            raise DataError(
                f"{len(only)} prompts were answered by only one of the two models (first: {only[:3]}); "
                "evaluate both on the same prompts, with the same max_prompts"
            )
        return paired_draws(
            self.values,
            baseline.values,
            resampling,
            candidate_weights=self.weights,
            baseline_weights=baseline.weights,
            geometric=self.measure.geometric,
            bounds=self.measure.bounds,
        )


def unit_values(
    scores: Iterable[Mapping[str, Any]], predictions: Sequence[Mapping[str, Any]], measures: Mapping[str, Measure]
) -> dict[str, dict[str, UnitValues]]:
    """Rows of the `scores` table as values a unit: `{decoding: {metric: UnitValues}}`, units sorted by id."""
    place = {row["id"]: (row["decoding"], row["prompt_id"]) for row in predictions}
    cells: dict[tuple[str, str], dict[str, list[tuple[float, float | None]]]] = defaultdict(lambda: defaultdict(list))
    for row in scores:
        decoding, unit = place.get(row["prediction_id"], (HELD_OUT, row["prediction_id"]))
        weight = json.loads(row["detail"]).get("weight") if row["detail"] else None
        cells[decoding, row["metric"]][unit].append((row["value"], weight))
    table: dict[str, dict[str, UnitValues]] = {}
    for (decoding, metric), units in sorted(cells.items()):
        table.setdefault(decoding, {})[metric] = _one_value_a_unit(units, measures[metric])
    return table


def _one_value_a_unit(units: Mapping[str, list[tuple[float, float | None]]], measure: Measure) -> UnitValues:
    names = tuple(sorted(units))
    weighted = all(weight is not None for answers in units.values() for _, weight in answers)
    pairs = [_unit_mean(units[name], measure.geometric) for name in names]
    return UnitValues(
        units=names,
        values=np.array([value for value, _ in pairs]),
        weights=np.array([weight for _, weight in pairs]) if weighted else None,
        measure=measure,
    )


def _unit_mean(answers: list[tuple[float, float | None]], geometric: bool) -> tuple[float, float]:
    """The weighted (geometric) mean of one unit's answers and their summed weight."""
    values = np.array([value for value, _ in answers], dtype=np.float64)
    weights = np.array([1.0 if weight is None else weight for _, weight in answers], dtype=np.float64)
    if weights.sum() == 0:
        return float(values[0]), 0.0
    mean = float(((np.log(values) if geometric else values) * weights).sum() / weights.sum())
    return float(np.exp(mean)) if geometric else mean, float(weights.sum())
