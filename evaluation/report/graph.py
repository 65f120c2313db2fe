"""The pipeline of a run as a picture: its entries from left to right, each after what it is made from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from evaluation.report.data import ReportData, followed
from evaluation.report.markup import Markup, tag

_WIDE, _HIGH, _ACROSS, _BETWEEN = 152, 46, 44, 14  # px: a box, and the room beside and below it
_LETTERS = 19  # that fit into a box


@dataclass(frozen=True)
class Box:
    """An entry, or one of its variants, with what follows it by itself: seconds of work, and whether all of it was cached."""

    name: str
    seconds: float
    cached: bool
    made_from: frozenset[str]


def boxes(data: ReportData) -> list[Box]:
    """The nodes of the lineage, conversions and evaluations taken together with what they follow."""
    # All models lead to the comparison: it would only cross the picture with lines.
    lineage = [entry for entry in data.lineage if entry.kind != "comparison"]
    owner = {entry.node: followed(entry.node) for entry in lineage}
    inputs: dict[str, set[str]] = {name: set() for name in owner.values()}
    for entry in lineage:
        # Evaluations ask the base, the data and the scorer too; what a model is made from is what its training took.
        if not entry.node.startswith("evaluate_"):
            inputs[owner[entry.node]] |= {owner[made_by] for made_by in entry.inputs if made_by in owner} - {owner[entry.node]}
    timings = defaultdict(list)
    for timing in data.timings:
        if timing.node in owner:
            timings[owner[timing.node]].append(timing)
    return [
        Box(
            name,
            sum(t.seconds for t in timings[name] if not t.cached),
            all(t.cached for t in timings[name]),
            frozenset(made_from),
        )
        for name, made_from in inputs.items()
    ]


def columns(found: Sequence[Box]) -> list[list[Box]]:
    """The boxes by how many others stand before them on the longest way; within a column near to what they are made from."""
    by_name = {box.name: box for box in found}
    depth: dict[str, int] = {}
    for box in found:  # the lineage has every node after those it is made from
        depth[box.name] = max((depth[name] + 1 for name in box.made_from if name in depth), default=0)
    placed: list[list[Box]] = []
    row: dict[str, float] = {}
    for column in range(max(depth.values(), default=-1) + 1):
        there = [by_name[name] for name, d in depth.items() if d == column]
        there.sort(key=lambda box: sum(row[name] for name in box.made_from if name in row) / max(len(box.made_from), 1))
        row |= {box.name: float(i) for i, box in enumerate(there)}
        placed.append(there)
    return placed


def graph_chart(data: ReportData) -> Markup | None:
    """The picture; None where there is no lineage. Wider than a phone: it scrolls."""
    placed = columns(boxes(data))
    if not placed:
        return None
    at = {box.name: (x, y) for x, column in enumerate(placed) for y, box in enumerate(column)}
    edges = [_edge(at[name], at[box.name]) for column in placed for box in column for name in sorted(box.made_from)]
    drawn = [_box(box, at[box.name], data) for column in placed for box in column]
    width = len(placed) * (_WIDE + _ACROSS) - _ACROSS
    height = max(map(len, placed)) * (_HIGH + _BETWEEN) - _BETWEEN
    title = tag("title", "What was made from what")
    picture = tag("svg", title, *edges, *drawn, class_="chart graph", width=width, height=height, role="img")
    return tag("div", picture, class_="scroll")


def _edge(start: tuple[int, int], end: tuple[int, int]) -> Markup:
    (x1, y1), (x2, y2) = _corner(start), _corner(end)
    x1, y1, y2 = x1 + _WIDE, y1 + _HIGH // 2, y2 + _HIGH // 2
    bend = _ACROSS // 2
    return tag("path", d=f"M{x1},{y1} C{x1 + bend},{y1} {x2 - bend},{y2} {x2},{y2}", class_="edge")


def _box(box: Box, place: tuple[int, int], data: ReportData) -> Markup:
    x, y = _corner(place)
    name = box.name if len(box.name) <= _LETTERS else f"{box.name[: _LETTERS - 1]}…"
    state = "cached" if box.cached else f"{box.seconds:.0f} s"
    made_from = f", made from {', '.join(sorted(box.made_from))}" if box.made_from else ""
    return tag(
        "g",
        tag("title", f"{box.name}: {state}{made_from}"),
        tag("rect", x=x, y=y, width=_WIDE, height=_HIGH, rx=8, class_="box cached" if box.cached else "box"),
        tag("rect", x=x, y=y, width=5, height=_HIGH, rx=2, class_="bar"),
        tag("text", name, x=x + 14, y=y + 20, class_="label"),
        tag("text", state, x=x + 14, y=y + 37, class_="tick"),
        style=f"--c:{data.colour_of(box.name)}",
    )


def _corner(place: tuple[int, int]) -> tuple[int, int]:
    column, row = place
    return column * (_WIDE + _ACROSS), row * (_HIGH + _BETWEEN)
