"""How the trained models were trained, side by side: what each earned and how steadily, what it cost, how far it went."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median, pstdev

from evaluation.report.charts import Point, number, scatter_chart
from evaluation.report.data import Curve, ReportData
from evaluation.report.markup import Markup, join, tag
from evaluation.report.tables import dotted, section
from evaluation.seeds import interval_over_seeds

# What share of the gain counts as there.
_THERE = 0.9
_ONLINE = "reward/mean"

Values = Sequence[float]


@dataclass(frozen=True)
class Column:
    """A number of a training run: the metrics that it may be logged as, and what is made of the values over the run."""

    title: str
    metrics: tuple[str, ...]
    of: Callable[[Values], float]


def _last(values: Values) -> float:
    """The mean of the last quarter: single rounds are noise."""
    return fmean(values[-max(1, len(values) // 4) :])


def _first(values: Values) -> float:
    return fmean(values[: max(1, len(values) // 4)])


def _steadiness(values: Values) -> float:
    """The deviation of the changes from one round to the next."""
    return pstdev([after - before for before, after in pairwise(values)])


def _rounds_to_there(values: Values) -> float:
    """The first round whose value has made most of the way from the first ones to the last."""
    start, goal = _first(values), _last(values)
    target = start + _THERE * (goal - start)
    reached = [i for i, value in enumerate(values, start=1) if (value >= target if goal >= start else value <= target)]
    return float(reached[0])


_COLUMNS = (
    Column("Reward at first", (_ONLINE,), _first),
    Column("Reward at last", (_ONLINE,), _last),
    Column("Change a round (sd)", (_ONLINE,), _steadiness),
    Column("Rounds to 90% of the gain", (_ONLINE,), _rounds_to_there),
    Column("KL to the reference (nats a response)", ("kl/sequence",), _last),
    Column("Entropy (nats a token)", ("sampled_entropy",), _last),
    Column("Length (tokens)", ("response_tokens/mean",), _last),
    Column("Mismatch KL (nats a token, largest)", ("mismatch_kl",), max),
    Column("Margin", ("margin",), _last),
    Column("Accuracy", ("accuracy",), _last),
    Column("Seconds a step", ("seconds/round", "seconds"), median),
    Column("CPU-seconds a step", ("cpu_seconds",), median),
    Column("Peak memory (MiB)", ("memory_mib",), max),
)


def training_section(data: ReportData) -> Markup:
    """A row a model, a table for those that log the same; left out for fewer than two models.

    What several seeds trained has the mean over them, with its interval.
    """
    runs = {
        name: [found for member in _members(data, name) if (found := _numbers(data, member))] for name in data.verdict["models"]
    }
    runs = {name: found for name, found in runs.items() if found}
    if len(runs) < 2:
        return join()
    tables = [_table(data, runs, titles) for titles in dict.fromkeys(_titles(found) for found in runs.values())]
    lead = (
        "What the training runs logged themselves; first and last are means over a quarter of the steps. Models of several seeds show the "
        f"mean over seeds with Student's {data.confidence:.0%} interval. Each method ran at the learning rate that its entry was given."
    )
    return section("training", "Training compared", *tables, _pareto(data), lead=lead)


def _titles(runs: Sequence[Mapping[str, float]]) -> tuple[str, ...]:
    return tuple(column.title for column in _COLUMNS if any(column.title in numbers for numbers in runs))


def _table(data: ReportData, runs: Mapping[str, Sequence[Mapping[str, float]]], titles: tuple[str, ...]) -> Markup:
    """The models whose runs have just these columns."""
    head = tag("tr", tag("th", "Model"), *(tag("th", title) for title in titles))
    rows = [_row(data, name, found, titles) for name, found in runs.items() if _titles(found) == titles]
    return tag("div", tag("table", tag("thead", head), tag("tbody", *rows), class_="folds"), class_="scroll")


def _members(data: ReportData, name: str) -> Sequence[str]:
    family = data.verdict.get("seeds", {}).get(name)
    members: Sequence[str] = family["members"] if family else [name]
    return members


def _numbers(data: ReportData, node: str) -> dict[str, float]:
    """The columns that the run of a node has."""
    curves = {curve.metric: curve for curve in data.curves.get(node, ())}
    curves |= {"memory_mib": total} if (total := _total_memory(curves)) else {}
    found = {}
    for column in _COLUMNS:
        curve = next((curves[metric] for metric in column.metrics if metric in curves), None)
        if curve is not None:
            found[column.title] = column.of(curve.values)
    return found


def _total_memory(curves: Mapping[str, Curve]) -> Curve | None:
    """Of an online run the memory of all roles together."""
    roles = [curve.values for metric, curve in curves.items() if metric.startswith("memory_mib/")]
    if not roles:
        return None
    return Curve("memory_mib", [0.0], [sum(max(values) for values in roles)])


def _row(data: ReportData, name: str, runs: Sequence[Mapping[str, float]], titles: Sequence[str]) -> Markup:
    model = tag("td", dotted(data, name), name)
    return tag("tr", model, *(_cell(data, title, [run[title] for run in runs if title in run]) for title in titles))


def _cell(data: ReportData, title: str, values: Sequence[float]) -> Markup:
    interval = interval_over_seeds(values, data.confidence)
    spread = tag("span", f"{number(interval.low)} – {number(interval.high)}", class_="range") if len(values) > 1 else None
    return tag("td", tag("span", number(interval.mean), class_="mean"), spread, data_column=title)


def _pareto(data: ReportData) -> Markup | None:
    """Each model's score against how far it went from the base; nothing where the KL was not measured."""
    metric, decoding = data.verdict["primary_metric"], data.verdict["decoding"]
    points = [
        Point(name, tables["kl"]["mean"], tables[metric]["mean"], data.colour_of(name))
        for name, decodings in data.verdict["models"].items()
        if {"kl", metric} <= (tables := decodings.get(decoding, {})).keys()
    ]
    if len(points) < 2 or metric == "kl":
        return None
    better = data.measures[metric].better
    best = {p.label for p in points if not any(_dominates(other, p, better) for other in points)}
    note = f"Not beaten at their KL or less: {', '.join(p.label for p in points if p.label in best)}."
    title = f"{data.measures[metric].title} against KL"
    chart = scatter_chart(points, title, data.measures["kl"].title, data.measures[metric].title)
    return join(tag("h3", title), chart, tag("p", note, class_="note"))


def _dominates(one: Point, other: Point, better: str) -> bool:
    """Whether `one` is better at no more KL."""
    gain = one.y - other.y if better != "lower" else other.y - one.y
    return gain > 0 and one.x <= other.x
