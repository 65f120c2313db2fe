"""The plots of docs/performance.md and docs/credit.md, as SVG that stays the same while its figures do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt

OURS, PEER, PALE = "#1f6feb", "#9aa4b2", "#57606a"
mpl.rcParams.update(
    {
        "svg.hashsalt": "performance",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": PALE,
        "figure.facecolor": "white",
    }
)


def bars(path: Path, arms: list[dict[str, Any]], units: list[float], label: str) -> None:
    """One bar an arm at its median of units a CPU-second, and a dot for every step."""
    figure, axes = plt.subplots(figsize=(6.4, 0.5 + 0.42 * len(arms)))
    for place, arm in enumerate(reversed(arms)):
        axes.barh(place, arm["units_per_cpu_s"], height=0.6, color=OURS if arm["by"] == "ours" else PEER)
        steps = [n / step["cpu_s"] for n, step in zip(units, arm["steps"], strict=True)]
        axes.scatter(steps, [place] * len(steps), s=9, color="black", zorder=3)
    axes.set_yticks(range(len(arms)), [arm["name"] for arm in reversed(arms)])
    axes.set_xlabel(label)
    _save(figure, path)


def growth(path: Path, lines: dict[str, list[tuple[float, float]]], x_label: str) -> None:
    """One panel a line, both axes logarithmic."""
    figure, panels = plt.subplots(1, len(lines), figsize=(3.4 * len(lines), 2.5), squeeze=False)
    for axes, (y_label, points) in zip(panels[0], lines.items(), strict=True):
        axes.loglog(*zip(*points, strict=True), marker="o", markersize=4, color=OURS)
        axes.set_xlabel(x_label)
        axes.set_title(y_label, fontsize=9)
        axes.grid(True, which="major", alpha=0.3)
    _save(figure, path)


def curves(path: Path, lines: dict[str, list[list[tuple[float, float]]]], x_label: str, y_label: str) -> None:
    """Each name's mean over its runs, and a thin line for each of them."""
    figure, axes = plt.subplots(figsize=(6.4, 3.4))
    for place, (name, runs) in enumerate(lines.items()):
        steps = [step for step, _ in runs[0]]
        values = [[value for _, value in run] for run in runs]
        for own in values:
            axes.plot(steps, own, color=f"C{place}", linewidth=0.6, alpha=0.5)
        means = [sum(each) / len(each) for each in zip(*values, strict=True)]
        axes.plot(steps, means, color=f"C{place}", linewidth=1.8, label=name)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    plt.close(figure)
