"""The report's section on the data: what was read, what is used, and what the rows are like."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evaluation.report.data import ReportData
from evaluation.report.markup import Markup, join, tag
from evaluation.report.tables import section

# Reasons for which rows are left out, by their key in a data artifact's summary.json.
_LEFT_OUT = {
    "bad_rows": "cannot be used",
    "duplicates": "repeat others",
    "contradictions": "contradict others",
    "leaks": "leak into other splits",
}
_SHOWN_SCRIPTS = 3


def data_section(data: ReportData) -> Markup:
    """The tables of every data artifact of the run."""
    if not data.data:
        return join()
    lead = (
        "Rows by split. Characters are those of all messages of a row. Near-duplicates share about 80 % of their words in threes."
    )
    return section(
        "data", "Data", *(_tables(node, summary, len(data.data) > 1) for node, summary in data.data.items()), lead=lead
    )


def _tables(node: str, summary: Mapping[str, Any], is_one_of_several: bool) -> Markup:
    names = ("Table", "Train", "Validation", "Test", "Characters", "Scripts", "Near-duplicates")
    head = tag("thead", tag("tr", *(tag("th", name) for name in names)))
    profile = summary.get("profile", {})
    rows = [_row(table, counts, profile.get(table)) for table, counts in summary["rows"].items()]
    table = tag("div", tag("table", head, tag("tbody", *rows)), class_="scroll")
    left_out = [f"{count:,} {words}" for key, words in _LEFT_OUT.items() if (count := summary.get(key, {}).get("count"))]
    read = f"{sum(summary['read'].values()):,} rows were read" if "read" in summary else ""
    note = tag("p", f"{read}; left out: {', '.join(left_out) or 'none'}.", class_="note") if read else None
    return join(tag("h3", node) if is_one_of_several else None, table, note, _close(profile))


def _row(table: str, counts: Mapping[str, int], seen: Mapping[str, Any] | None) -> Markup:
    splits = [f"{counts.get(split, 0):,}" for split in ("train", "validation", "test")]
    if seen is None:
        return tag("tr", *(tag("td", cell) for cell in (table, *splits, "–", "–", "–")))
    lengths, near = seen["characters"], seen["near_duplicates"]
    looked_at = seen["rows"]["looked_at"]
    of = f" of {looked_at:,} rows looked at" if looked_at < seen["rows"]["of"] else ""
    scripts = ", ".join(f"{name} {share:.0%}" for name, share in list(seen["scripts"].items())[:_SHOWN_SCRIPTS])
    close = f"{near['count']:,}{of}" + (f", {near['across_splits']:,} across splits" if near["across_splits"] else "")
    characters = f"{lengths['median']:,} in the middle, 95 % up to {lengths['p95']:,}, longest {lengths['longest']:,}"
    return tag("tr", *(tag("td", cell) for cell in (table, *splits, characters, scripts, close)))


def _close(profile: Mapping[str, Any]) -> Markup | None:
    """The first rows that are nearly the same, folded away."""
    listed = [f"{table}: {line}" for table, seen in profile.items() for line in seen["near_duplicates"]["listed"]]
    if not listed:
        return None
    return tag("details", tag("summary", "Rows that are nearly the same"), tag("ul", *(tag("li", line) for line in listed)))
