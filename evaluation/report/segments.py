"""What the segments of a reward model earn by where they stand in a response, with the fit that is taken off in training on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evaluation.report.charts import Point, number, scatter_chart
from evaluation.report.data import ReportData
from evaluation.report.markup import Markup, join, tag
from evaluation.report.tables import node_heading, section
from rlhf_core.credit.positions import PositionFit

_PLACES = 48  # that curves are drawn through


def segments_section(data: ReportData) -> Markup:
    """A chart for each reward model of segments; left out where there is none."""
    if not data.segments:
        return join()
    lead = (
        "Rewards of training segments by the share of a response's segments that is completed with them: means of all that stand at one place, and "
        "the fit of mean and deviation over its logarithm. A response is worth the mean of its segments; training on segments takes the fit off."
    )
    return section("segments", "Segments", *(_node(data, node, told) for node, told in data.segments.items()), lead=lead)


def _node(data: ReportData, node: str, told: Mapping[str, Any]) -> Markup:
    means, counts = told["positions"]["mean"], told["positions"]["count"]
    points = [Point("", float(place), value, data.colour_of(node)) for place, value in means.items()]
    first = min(point.x for point in points)
    places = [first + (1.0 - first) * k / _PLACES for k in range(_PLACES + 1)] if first < 1 else []
    mean, std = told["lines"]["mean"], told["lines"]["std"]
    fit = PositionFit(mean["w"], std["w"], mean["b"], std["b"])
    curves = [[(p, fit.mean(p) + sign * fit.std(p)) for p in places] for sign in (-1, 0, 1)]
    chart = scatter_chart(points, "Reward of segments by position", "share of the segments", "reward", curves=curves, radius=3)
    fits = ", ".join(f"{name}: R² {number(line['r2'])}" for name, line in told["lines"].items())
    threshold = f"threshold {told['threshold_nats']:g} nats, {sum(counts.values())} segments; fit of {fits}"
    return tag("div", node_heading(data, node), tag("p", threshold), chart)
