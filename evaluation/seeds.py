"""Models that differ in their seed only, seen as one: what a setting gives, whatever the seed."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from evaluation.bootstrap import Interval
from evaluation.evaluation_artifact import Evaluation, IntervalTable, intervals_json


@dataclass(frozen=True)
class Family:
    """The seeds of one setting: the model that stands for them, every metric's mean and interval over seeds, and those of each.

    The one that stands for them is the one in the middle, so that what is registered is about as good as what was measured.
    """

    means: Mapping[str, Mapping[str, Mapping[str, float]]]
    stands_for: str
    over_seeds: IntervalTable

    def to_json(self) -> dict[str, Any]:
        """The fields as a JSON object."""
        return {
            "members": list(self.means),
            "stands_for": self.stands_for,
            "over_seeds": intervals_json(self.over_seeds),
            "means": self.means,
        }


def folded(evaluations: Mapping[str, Evaluation], families: Mapping[str, Sequence[str]]) -> dict[str, Evaluation]:
    """`evaluations` with the members of each family taken together under its name, in the place of the first of them.

    A prompt stays one unit: the answers of all seeds to it count as its answers.
    """
    family_of = {member: family for family, members in families.items() for member in members if member in evaluations}
    together: dict[str, Evaluation] = {}
    for name, evaluation in evaluations.items():
        family = family_of.get(name)
        if family is None:
            together[name] = evaluation
        elif family not in together:
            together[family] = _joined({m: evaluations[m] for m in families[family] if m in evaluations})
    return together


def family(members: Mapping[str, Evaluation], primary: tuple[str, str], confidence: float) -> Family:
    """What is said of `members`; `primary` is the decoding and the metric by which the one in the middle is found."""
    means = {name: _means(evaluation) for name, evaluation in members.items()}
    cells = {cell for table in means.values() for cell in table}
    over: IntervalTable = {}
    for decoding, metric in sorted(cells):
        values = [table[decoding, metric] for table in means.values() if (decoding, metric) in table]
        over.setdefault(decoding, {})[metric] = interval_over_seeds(values, confidence)
    centre = over[primary[0]][primary[1]].mean
    nested: dict[str, dict[str, dict[str, float]]] = {name: defaultdict(dict) for name in means}
    for name, table in means.items():
        for (decoding, metric), value in table.items():
            nested[name][decoding][metric] = value
    return Family(nested, min(members, key=lambda name: abs(means[name][primary] - centre)), over)


def interval_over_seeds(values: Sequence[float], confidence: float) -> Interval:
    """Student's interval of the mean of `values`, one a seed; from one seed alone nothing follows but itself."""
    mean, n = fmean(values), len(values)
    if n < 2:
        return Interval(mean, mean, mean, n)
    # Takes a while to import, and few runs have several seeds; `scipy.stats` would take five times as long.
    from scipy.special import stdtrit

    reach = float(stdtrit(n - 1, (1 + confidence) / 2)) * stdev(values) / math.sqrt(n)
    return Interval(mean, mean - reach, mean + reach, n)


def _joined(members: Mapping[str, Evaluation]) -> Evaluation:
    """All answers and scores; answers of different models get different ids, held-out rows keep theirs."""
    predictions: list[dict[str, Any]] = []
    scores: list[dict[str, Any]] = []
    for name, evaluation in members.items():
        renamed = {row["id"]: f"{row['id']}/{name}" for row in evaluation.predictions}
        predictions += [{**row, "id": renamed[row["id"]]} for row in evaluation.predictions]
        scores += [{**row, "prediction_id": renamed.get(row["prediction_id"], row["prediction_id"])} for row in evaluation.scores]
    # All were asked the same prompts.
    first = next(iter(members.values()))
    return Evaluation(predictions, scores, first.measures, first.counts)


def _means(evaluation: Evaluation) -> dict[tuple[str, str], float]:
    """Every metric's statistic over all prompts, by decoding and metric."""
    return {
        (decoding, metric): values.mean() for decoding, metrics in evaluation.values.items() for metric, values in metrics.items()
    }
