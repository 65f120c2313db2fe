"""Which parts of a response earned what, in some responses of the last round of an online run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evaluation.report.charts import number
from evaluation.report.data import ReportData
from evaluation.report.markup import Markup, join, preformatted, tag
from evaluation.report.tables import node_heading, section

# Below this two decimals would show nothing.
_SMALL = 0.005


def credit_section(data: ReportData) -> Markup:
    """Some responses of each online node that spread its rewards; left out where none did."""
    if not data.credit:
        return join()
    lead = (
        "Of the last round. Each marked part earned the number behind it, the darker the more of the largest here; what is not marked earned "
        "nothing of its own. Outcome is what the whole response is worth."
    )
    parts = [_node(data, node, told) for node, told in data.credit.items()]
    return section("credit", "Credit", *parts, lead=lead)


def _node(data: ReportData, node: str, told: Sequence[Mapping[str, Any]]) -> Markup:
    largest = max((abs(part["credit"]) for each in told for part in each["parts"] if part["credit"] is not None), default=0.0)
    return tag("div", node_heading(data, node), *(_response(each, largest) for each in told))


def _response(told: Mapping[str, Any], largest: float) -> Markup:
    asked = [
        tag("div", tag("span", message["role"], class_="role"), preformatted(message["content"]), class_="turn")
        for message in told["prompt"]
    ]
    outcome = tag("p", tag("span", f"outcome {number(told['reward'])}", class_="pill"))
    text = tag("pre", *(_part(part, largest) for part in told["parts"]))
    return tag("article", *asked, tag("div", text, class_="turn credited"), outcome, class_="sample")


def _part(part: Mapping[str, Any], largest: float) -> Markup:
    credit = part["credit"]
    if credit is None:
        return tag("span", part["text"])
    share = round(100 * abs(credit) / largest) if largest else 0
    kind = "unit good" if credit >= 0 else "unit bad"
    earned = tag("sup", f"{credit:+.2f}" if abs(credit) >= _SMALL or not credit else f"{credit:+.1e}")
    return tag("mark", part["text"], earned, class_=kind, style=f"--share: {share}%")
