"""Charts as inline SVG. Horizontal places are percentages and text is never scaled, so one chart fits phone and paper."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from evaluation.report.markup import Markup, join, tag


@dataclass(frozen=True)
class IntervalRow:
    """A line of an interval chart: label, numbers, the text at its right end, and the CSS colour it is drawn in."""

    label: str
    mean: float
    low: float
    high: float
    text: str
    colour: str


_ROW_PX = 46
_PAD = 2.5  # percent left and right, so that dots on the edge are whole


def interval_chart(rows: Sequence[IntervalRow], title: str, zero_line: bool = False) -> Markup:
    """A forest plot: one interval a row with its mean as a dot, over a shared axis; `zero_line` marks 0 and includes it."""
    ends = [end for row in rows for end in (row.low, row.high, row.mean)] + ([0.0] if zero_line else [])
    ticks = nice_ticks(min(ends), max(ends))
    low, high = min(ticks[0], *ends), max(ticks[-1], *ends)

    def x(value: float) -> str:
        return f"{_PAD + (100 - 2 * _PAD) * (value - low) / (high - low):.3f}%"

    height = _ROW_PX * len(rows)
    labels = [tag("text", f"{t:g}", x=x(t), y=height + 16, class_="tick", text_anchor="middle") for t in ticks]
    bars = [
        join(*(_tick_mark(x(t), i * _ROW_PX, zero_line and t == 0) for t in ticks), _interval(row, i * _ROW_PX, x))
        for i, row in enumerate(rows)
    ]
    return tag("svg", tag("title", title), *bars, *labels, class_="chart", width="100%", height=height + 24, role="img")


def _tick_mark(x: str, top: int, is_zero: bool) -> Markup:
    """A piece of the grid behind one bar: it never runs through the row's text."""
    return tag("line", x1=x, x2=x, y1=top + 23, y2=top + 41, class_="zero" if is_zero else "grid")


def _interval(row: IntervalRow, top: int, x: Callable[[float], str]) -> Markup:
    middle = top + 32
    style = f"--c:{row.colour}"
    return tag(
        "g",
        tag("text", row.label, x="0", y=top + 16, class_="label"),
        tag("text", row.text, x="100%", y=top + 16, class_="value", text_anchor="end"),
        tag("line", x1=x(row.low), x2=x(row.high), y1=middle, y2=middle, class_="ci", style=style),
        tag("circle", cx=x(row.mean), cy=middle, r=6, class_="dot", style=style),
        tag("title", f"{row.label}: {row.text}"),
    )


@dataclass(frozen=True)
class Point:
    """A dot of a scatter plot, with its name and the CSS colour it is drawn in."""

    label: str
    x: float
    y: float
    colour: str


def scatter_chart(
    points: Sequence[Point],
    title: str,
    x_title: str,
    y_title: str,
    height: int = 320,
    *,
    curves: Sequence[Sequence[tuple[float, float]]] = (),
    radius: int = 6,
) -> Markup:
    """Dots with names, and lines through places, over two axes of round numbers."""
    x_ticks = nice_ticks(min(p.x for p in points), max(p.x for p in points))
    heights = [*(p.y for p in points), *(place[1] for curve in curves for place in curve)]
    y_ticks = nice_ticks(min(heights), max(heights))
    top, bottom, left, right = 24, height - 40, 8.0, 88.0  # px, px, percent, percent: room for the names on the right

    def x(value: float) -> str:
        return f"{left + (right - left) * (value - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]):.2f}%"

    def y(value: float) -> float:
        return round(bottom - (bottom - top) * (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]), 1)

    grid = [
        *(tag("line", x1=x(t), x2=x(t), y1=top, y2=bottom, class_="grid") for t in x_ticks),
        *(tag("line", x1=f"{left}%", x2=f"{right}%", y1=y(t), y2=y(t), class_="grid") for t in y_ticks),
        *(tag("text", f"{t:g}", x=x(t), y=bottom + 16, class_="tick", text_anchor="middle") for t in x_ticks),
        *(tag("text", f"{t:g}", x=f"{left - 1}%", y=y(t) + 4, class_="tick", text_anchor="end") for t in y_ticks),
        tag("text", x_title, x=f"{(left + right) / 2}%", y=height - 4, class_="tick", text_anchor="middle"),
        tag("text", y_title, x="0", y=12, class_="tick"),
    ]
    dots = [
        tag(
            "g",
            tag("circle", cx=x(p.x), cy=y(p.y), r=radius, class_="dot", style=f"--c:{p.colour}"),
            tag("text", p.label, x=x(p.x), y=y(p.y) + 4, dx=10, class_="label"),
            tag("title", f"{p.label}{': ' * bool(p.label)}{number(p.y)} at {number(p.x)}"),
        )
        for p in points
    ]
    # Widths are percentages, so a curve is made of straight pieces.
    pieces = [
        tag("line", x1=x(one[0]), y1=y(one[1]), x2=x(two[0]), y2=y(two[1]), class_="zero")
        for curve in curves
        for one, two in pairwise(curve)
    ]
    return tag("svg", tag("title", title), *grid, *pieces, *dots, class_="chart", width="100%", height=height, role="img")


def line_chart(steps: Sequence[float], values: Sequence[float], title: str, colour: str) -> Markup:
    """Values over steps; below it the range of the steps and of the values. Needs at least two points."""
    low, high = min(values), max(values)
    flat = high - low <= 1e-12 * max(abs(low), abs(high), 1e-12)
    floor, span = (low - 0.5, 1.0) if flat else (low, high - low)
    width = (steps[-1] - steps[0]) or 1.0
    points = [(100 * (s - steps[0]) / width, 100 - 100 * (v - floor) / span) for s, v in zip(steps, values, strict=True)]
    line = " ".join(f"{px:.2f},{py:.2f}" for px, py in points)
    plot = tag(
        "svg",
        tag("polygon", points=f"0,100 {line} 100,100", class_="area"),
        tag("polyline", points=line, class_="line", vector_effect="non-scaling-stroke"),
        x="0",
        y=8,
        width="100%",
        height=84,
        viewBox="0 0 100 100",
        preserveAspectRatio="none",
        overflow="visible",
    )
    frame = [tag("line", x1="0", x2="100%", y1=y, y2=y, class_="grid") for y in (8, 92)]
    last = tag("circle", cx="100%", cy=f"{8 + 84 * points[-1][1] / 100:.1f}", r=3.5, class_="dot")
    steps_shown = f"steps {steps[0]:g} to {steps[-1]:g}"
    range_shown = number(low) if flat else f"{number(low)} to {number(high)}"
    edges = join(
        tag("text", steps_shown, x="0", y=108, class_="tick"),
        tag("text", range_shown, x="100%", y=108, class_="tick", text_anchor="end"),
    )
    style = f"--c:{colour}"
    parts = (tag("title", title), *frame, plot, last, edges)
    return tag("svg", *parts, class_="chart curve", width="100%", height=114, role="img", style=style)


def share_bar(fraction: float, colour: str) -> Markup:
    """A horizontal bar over `fraction` of the width."""
    width = f"{100 * min(max(fraction, 0.0), 1.0):.2f}%"
    bar = tag("rect", x="0", y=0, width=width, height=10, rx=3, class_="bar", style=f"--c:{colour}")
    return tag("svg", bar, class_="chart", width="100%", height=10, aria_hidden="true")


def nice_ticks(low: float, high: float, target: int = 5) -> list[float]:
    """About `target` round numbers that reach from `low` or below to `high` or above."""
    size = max(abs(low), abs(high), 1.0)
    # Ends that are equal but for rounding get an axis as wide as they are large.
    span = high - low if high - low > 1e-9 * size else size
    raw = span / target
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [round(i * step, 12) for i in range(first, last + 1)]


def number(value: float) -> str:
    """Three significant digits, without exponents where people do not use them."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:.1e}"
