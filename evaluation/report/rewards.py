"""What the rewards of online runs gave, and what they go with: a reward that pays for length shows here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evaluation.report.charts import number
from evaluation.report.data import ReportData
from evaluation.report.markup import Markup, join, tag
from evaluation.report.tables import node_heading, section

# From here on two things go together so much that a reader should look.
_TOGETHER = 0.7


def rewards_section(data: ReportData) -> Markup:
    """A table an online node; left out where none was trained."""
    if not data.rewards:
        return join()
    lead = (
        "Over all responses of a run: mean and spread of each source, as it is, and its correlation with the length in tokens and with the other "
        f"sources; {_TOGETHER:g} or more is marked. One that goes with the length may be paying for it."
    )
    return section("rewards", "Rewards", *(_node(data, node, facts) for node, facts in data.rewards.items()), lead=lead)


def _node(data: ReportData, node: str, facts: Mapping[str, Any]) -> Markup:
    parts: Sequence[Mapping[str, Any]] = facts["parts"]
    names = [part["name"] for part in parts]
    heads = ("Source", "Mean", "Sd", "Least", "Median", "Most", "Without", "With tokens", *(f"With {name}" for name in names[1:]))
    rows = [_row(part, names, heads) for part in parts]
    table = tag("table", tag("thead", tag("tr", *(tag("th", head) for head in heads))), tag("tbody", *rows), class_="folds")
    return tag("div", node_heading(data, node), tag("div", table, class_="scroll"))


def _row(part: Mapping[str, Any], names: Sequence[str], heads: Sequence[str]) -> Markup:
    least, _, median, _, most = part["quartiles"] or [None] * 5
    values = [part["mean"], part["sd"], least, median, most]
    cells = [_told(value) for value in values] + [str(part["absent"] + part["failed"])]
    with_others = [part["with_parts"].get(name) for name in names[1:]]
    cells += [_correlation(value) for value in (part["with_length"], *with_others)]
    return tag("tr", tag("td", part["name"]), *(tag("td", c, data_column=h) for c, h in zip(cells, heads[1:], strict=True)))


def _told(value: float | None) -> str:
    return "–" if value is None else number(value)


def _correlation(value: float | None) -> str | Markup:
    if value is None:
        return "–"
    told = f"{value:+.2f}"
    return tag("span", told, class_="pill note") if abs(value) >= _TOGETHER else told
