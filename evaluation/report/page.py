"""The report of a run: one HTML file that needs nothing else, neither network nor script. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from evaluation.report.conversations import conversations_section
from evaluation.report.credit import credit_section
from evaluation.report.data import ReportData
from evaluation.report.details import (
    config_section,
    curves_section,
    lineage_section,
    pipeline_section,
    samples_section,
    timings_section,
)
from evaluation.report.markup import Markup, join, tag
from evaluation.report.rewards import rewards_section
from evaluation.report.rows import data_section
from evaluation.report.segments import segments_section
from evaluation.report.style import STYLE
from evaluation.report.tables import forest_section, metrics_section, tiles, verdict_section
from evaluation.report.training import training_section

# Even if markup slipped through, a browser would run no script and fetch nothing.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

# Anchor -> (name in the navigation, what makes the section). A section with nothing to show is left out.
_SECTIONS: Mapping[str, tuple[str, Callable[[ReportData], Markup]]] = {
    "verdict": ("Verdict", lambda data: join(verdict_section(data), tiles(data))),
    "primary": ("Primary metric", forest_section),
    "metrics": ("Metrics", metrics_section),
    "training": ("Training", training_section),
    "rewards": ("Rewards", rewards_section),
    "pipeline": ("Pipeline", pipeline_section),
    "data": ("Data", data_section),
    "samples": ("Answers", samples_section),
    "conversations": ("Conversations", conversations_section),
    "segments": ("Segments", segments_section),
    "credit": ("Credit", credit_section),
    "curves": ("Curves", curves_section),
    "timings": ("Time", timings_section),
    "lineage": ("Lineage", lineage_section),
    "config": ("Configuration", config_section),
}


def write_report(data: ReportData, path: Path) -> None:
    """Write the page to `path`; it appears there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(render_report(data), encoding="utf-8")
    part.replace(path)


def render_report(data: ReportData) -> str:
    """The page as HTML text. All text of models, data and settings is escaped."""
    sections = {anchor: make(data) for anchor, (_, make) in _SECTIONS.items()}
    present = {anchor: content for anchor, content in sections.items() if content}
    links = [tag("a", _SECTIONS[anchor][0], href=f"#{anchor}") for anchor in present]
    navigation = tag("nav", *links, aria_label="Sections")
    eyebrow = tag("p", "Alignflow report", class_="eyebrow")
    header = tag("header", eyebrow, tag("h1", data.title), _elsewhere(data), navigation)
    body = tag("body", tag("main", header, *present.values(), tag("footer", "Made by alignflow.")))
    page = tag("html", _head(data.title), body, lang="en")
    return f"<!doctype html>\n{page}\n"


def _elsewhere(data: ReportData) -> Markup | None:
    """The run's pages in Prefect and MLflow. Nothing is fetched from them; only web addresses become links."""
    pages = [tag("a", where, href=page) for where, page in data.pages.items() if page.startswith(("http://", "https://"))]
    return tag("p", "This run in ", join(*pages, separator=" · "), class_="lead") if pages else None


def _head(title: str) -> Markup:
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name_="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Markup(STYLE)),
    )
