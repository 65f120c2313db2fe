"""The lower half of the report: samples side by side, training curves, timings, lineage, configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from data_processing.wording import artifact_name
from evaluation.report.charts import line_chart, number, share_bar
from evaluation.report.data import Curve, LineageEntry, ReportData, Timing
from evaluation.report.graph import graph_chart
from evaluation.report.markup import Markup, join, preformatted, tag
from evaluation.report.tables import node_heading, section, shown

# Curves whose name contains one of these come first, in this order; the others are one click away.
_FIRST = ("loss", "reward", "score", "accuracy", "margin", "kl", "entropy", "length", "perplexity", "value", "gap", "truncated")
_LAST = ("second", "per_s")
_SHOWN_CURVES = 8
_SHOWN_ANSWERS = 6


def samples_section(data: ReportData) -> Markup:
    """Prompts with every model's answer, its score, and what is wrong with it."""
    if not data.samples:
        return join()
    lead = "Chosen evenly between the largest gain and the largest loss of the best candidate over the baseline, in that order."
    return section("samples", "Answers side by side", *(_sample(sample, data) for sample in data.samples), lead=lead)


def _sample(sample: Mapping[str, Any], data: ReportData) -> Markup:
    turns = [
        tag("div", tag("span", turn["role"], class_="role"), preformatted(turn["content"]), class_="turn")
        for turn in sample["prompt"]
    ]
    answers = [_answer(answer, data) for answer in sample["answers"]]
    first, rest = answers[:_SHOWN_ANSWERS], answers[_SHOWN_ANSWERS:]
    more = tag("details", tag("summary", f"{len(rest)} more models"), tag("div", *rest, class_="answers")) if rest else None
    return tag("article", *turns, tag("div", *first, class_="answers"), more, class_="sample")


def _answer(answer: Mapping[str, Any], data: ReportData) -> Markup:
    measure = data.measures[data.verdict["primary_metric"]]
    score = answer["score"]
    cut = tag("span", "cut at the length limit", class_="pill note") if answer["finish_reason"] == "length" else None
    pill = None if score is None else tag("span", shown(score, measure), class_=_score_class(score, answer), title=measure.title)
    faults = tag("ul", *(tag("li", fault) for fault in answer["faults"]), class_="faults") if answer["faults"] else None
    header = tag("header", tag("b", answer["model"]), cut, tag("span", f"{answer['tokens']} tokens", class_="pill"), pill)
    return tag(
        "div", header, preformatted(answer["text"]), faults, class_="answer", style=f"--c:{data.colour_of(answer['model'])}"
    )


def _score_class(score: float, answer: Mapping[str, Any]) -> str:
    """Coloured only where the score comes with named faults or is a share that is complete."""
    if answer["faults"]:
        return "pill bad" if score < 0.5 else "pill note"
    return "pill good" if score == 1 else "pill"


def pipeline_section(data: ReportData) -> Markup:
    """What was made from what."""
    picture = graph_chart(data)
    if picture is None:
        return join()
    lead = "From left to right, each after what it is made from; its conversion and evaluation are part of it. Dashed: from the store."
    return section("pipeline", "Pipeline", picture, lead=lead)


def curves_section(data: ReportData) -> Markup:
    """What each stage logged while it trained."""
    if not data.curves:
        return join()
    stages = [_stage_curves(data, stage, curves) for stage, curves in data.curves.items()]
    return section("curves", "Training curves", *stages, lead="One plot a metric; the number is the last value.")


def _stage_curves(data: ReportData, stage: str, curves: Sequence[Curve]) -> Markup:
    ordered = sorted(curves, key=_rank)
    figures = [_figure(curve, data.colour_of(stage)) for curve in ordered]
    rest = figures[_SHOWN_CURVES:]
    more = tag("details", tag("summary", f"{len(rest)} more"), tag("div", *rest, class_="curves")) if rest else None
    notes = [
        tag("p", tag("span", "warning", class_="pill note"), " ", text) for text in dict.fromkeys(data.warnings.get(stage, ()))
    ]
    first = tag("div", *figures[:_SHOWN_CURVES], class_="curves")
    return tag("div", node_heading(data, stage), *notes, first, tag("p") if more else None, more, class_="stage")


def _rank(curve: Curve) -> tuple[int, int, str]:
    name = curve.metric.lower()
    place = next((i for i, word in enumerate(_FIRST) if word in name), len(_FIRST))
    return (len(_FIRST) if any(word in name for word in _LAST) else place), len(name), name


def _figure(curve: Curve, colour: str) -> Markup:
    name = curve.metric.replace("_", " ").replace("/", " / ")
    dropped = f" ({curve.dropped} not finite)" if curve.dropped else ""
    caption = tag("figcaption", tag("span", name + dropped), tag("b", number(curve.values[-1])))
    return tag("figure", caption, line_chart(curve.steps, curve.values, name, colour))


def timings_section(data: ReportData) -> Markup:
    """How long each stage took, and which were taken from the store."""
    if not data.timings:
        return join()
    longest = max(timing.seconds for timing in data.timings) or 1.0
    rows = [cell for timing in data.timings for cell in _timing(data, timing, longest)]
    worked = sum(timing.seconds for timing in data.timings if not timing.cached)
    cached = sum(timing.cached for timing in data.timings)
    lead = f"{duration(worked)} of stage time in this run; {cached} of {len(data.timings)} stages came from the store."
    return section("timings", "Time", tag("div", *rows, class_="time"), lead=lead)


def _timing(data: ReportData, timing: Timing, longest: float) -> tuple[Markup, Markup, Markup]:
    label = tag("span", "cached", class_="pill") if timing.cached else duration(timing.seconds)
    bar = share_bar(0.0 if timing.cached else timing.seconds / longest, data.colour_of(timing.node))
    return tag("span", timing.node), tag("span", bar, class_="track"), tag("span", label, class_="seconds")


def duration(seconds: float) -> str:
    """Seconds as people say them: 4.2 s, 3 min 20 s, 1 h 05 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def lineage_section(data: ReportData) -> Markup:
    """Which artifact was made by whom, from what."""
    if not data.lineage:
        return join()
    head = tag("thead", tag("tr", *(tag("th", name) for name in ("Node", "Kind", "Artifact", "Made by", "From"))))
    table = tag("table", head, tag("tbody", *(_lineage_row(entry) for entry in data.lineage)), class_="left")
    lead = "Artifacts are named after the hash of everything that can change them; the same name is the same result."
    return section("lineage", "Lineage", tag("div", table, class_="scroll"), lead=lead)


def _lineage_row(entry: LineageEntry) -> Markup:
    name = tag("code", artifact_name(entry.node, entry.key), title=entry.key)
    over = f"adopted over changes of {', '.join(entry.adopted)}" if entry.adopted else None
    made_by = join(tag("code", entry.producer), over, separator=" ")
    cells = (entry.node, entry.kind, name, made_by, ", ".join(entry.inputs) or "–")
    return tag("tr", *(tag("td", cell) for cell in cells))


def config_section(data: ReportData) -> Markup:
    """The resolved configuration, folded away."""
    if not data.config_yaml:
        return join()
    body = tag("details", tag("summary", "Show every setting"), preformatted(data.config_yaml, class_="config"))
    return section("config", "Configuration", body)
