"""The upper half of the report: verdict, tiles, forest plots and the table of all metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evaluation.report.charts import IntervalRow, interval_chart
from evaluation.report.data import ReportData
from evaluation.report.markup import Content, Markup, join, tag
from evaluation.scores import DECODINGS, HELD_OUT, Measure

Numbers = Mapping[str, float]

_MOST_COLUMNS = 6  # models beside each other; more are rows
_DECODING_TITLES = {
    "sampled": "Sampled answers",
    "greedy": "Greedy answers",
    HELD_OUT: "Held-out answers (nothing generated)",
}


def dotted(data: ReportData, name: str) -> Markup:
    """The dot in the colour of a model or a node."""
    return tag("span", class_="dotted", style=f"--c:{data.colour_of(name)}")


def node_heading(data: ReportData, node: str) -> Markup:
    """The heading of what is told of a node."""
    return tag("h3", dotted(data, node), node.replace("_", " "))


def section(identity: str, title: str, *children: Content, lead: str | None = None) -> Markup:
    """A titled card of the page."""
    return tag("section", tag("h2", title), tag("p", lead, class_="lead") if lead else None, *children, id=identity)


def verdict_section(data: ReportData) -> Markup:
    """Who is the challenger, or that nobody is, and why."""
    challenger = data.verdict["challenger"]
    undecided = any(test["judgement"] == "too few prompts" for test in data.verdict.get("tests", {}).values())
    headline = f"Challenger: {challenger}" if challenger else "No verdict" if undecided else "No challenger"
    colour = data.colour_of(challenger) if challenger else "var(--faint)"
    text = tag("div", tag("strong", headline), tag("p", data.verdict["reason"]))
    return tag("section", text, class_="verdict", id="verdict", style=f"--c:{colour}")


def tiles(data: ReportData) -> Markup:
    """The primary metric of every model, large."""
    metric, decoding = data.verdict["primary_metric"], data.verdict["decoding"]
    cards = []
    for name, table in data.verdict["models"].items():
        numbers = table.get(decoding, {}).get(metric)
        if numbers is None:
            continue
        mean, low, high = (shown(numbers[key], data.measures[metric]) for key in ("mean", "low", "high"))
        cards.append(
            tag(
                "div",
                tag("div", name, class_="name"),
                tag("div", mean, class_="big"),
                tag("div", f"{low} to {high}", class_="small"),
                _standing(name, data),
                class_="tile",
                style=f"--c:{data.colour_of(name)}",
            )
        )
    return tag("div", *cards, class_="tiles")


def forest_section(data: ReportData) -> Markup:
    """The primary metric of every model, and every model's paired difference against the baseline."""
    verdict = data.verdict
    metric, decoding, baseline = verdict["primary_metric"], verdict["decoding"], verdict["baseline"]
    measure = data.measures[metric]
    means = _rows(data, "models", measure, signed=False)
    differences = _rows(data, "paired", measure, signed=True)
    plots = [_plot("Each model", means, f"{measure.title} of each model", zero_line=False)]
    if differences:
        title = f"Difference to {baseline}, paired by prompt"
        plots.append(_plot(title, differences, title, zero_line=True))
    lead = f"{_DECODING_TITLES[decoding]}. Dots are means, bars {data.confidence:.0%} intervals over {_measured(data, decoding)}."
    tables = (_tests(data), _seeds(data), _sources(data))
    return section("primary", measure.title, tag("div", *plots, class_="plots"), *tables, lead=lead)


def _measured(data: ReportData, decoding: str) -> str:
    """`64 of 165 test prompts`, with what was left out."""
    held_out = decoding == HELD_OUT
    counts = data.rows.get("sft" if held_out else "prompts")
    kind = "held-out conversations" if held_out else "test prompts"
    if counts is None:
        return kind
    left_out = f"; {len(counts['left_out'])} too long for the model" if counts["left_out"] else ""
    refused = f"; {len(counts['refused'])} refused by its chat template" if counts.get("refused") else ""
    return f"{counts['measured']} of {counts['of']} {kind}{left_out}{refused}"


def _tests(data: ReportData) -> Markup | None:
    """How sure each model's difference is, and how large one had to be to be found."""
    tests = data.verdict.get("tests", {})
    if not tests:
        return None
    measure = data.measures[data.verdict["primary_metric"]]
    head = tag("tr", *(tag("th", name) for name in ("Model", "p", "Detectable gain")))
    rows = [_test_row(data, name, test, measure) for name, test in tests.items()]
    note = (
        f"A model is judged from {data.verdict['min_prompts']} paired prompts on, and differs where p is at most "
        f"{1 - data.confidence:.2g}, after Holm's correction over the candidates. A true gain of the detectable size is found 4 times in 5."
    )
    table = tag("div", tag("table", tag("thead", head), tag("tbody", *rows)), class_="scroll")
    return join(tag("h3", f"Against {data.verdict['baseline']}"), table, tag("p", note, class_="note"))


def _test_row(data: ReportData, name: str, test: Mapping[str, Any], measure: Measure) -> Markup:
    few = test["judgement"] == "too few prompts"
    judged = f"too few prompts: {test['n']} of {data.verdict['min_prompts']} needed" if few else test["judgement"]
    detectable = "–" if test["detectable"] is None else shown(test["detectable"], measure)
    dot = dotted(data, name)
    model = tag("td", dot, name, tag("span", judged, class_="range"))
    return tag("tr", model, tag("td", _p(test["corrected_p"])), tag("td", detectable))


def _seeds(data: ReportData) -> Markup | None:
    """Models trained under several seeds: the metric that decides over seeds, and that of each."""
    families = data.verdict.get("seeds", {})
    if not families:
        return None
    head = tag("tr", *(tag("th", name) for name in ("Model", "Seeds", "Mean over seeds", "Each seed")))
    rows = [_seeds_row(data, name, family) for name, family in families.items()]
    note = (
        f"Elsewhere on this page the answers of all seeds count as the answers of one model. Here the interval ({data.confidence:.0%}, "
        "Student's) is over seeds. What is registered for such a model is the seed nearest to its mean."
    )
    table = tag("div", tag("table", tag("thead", head), tag("tbody", *rows)), class_="scroll")
    return join(tag("h3", "Over seeds"), table, tag("p", note, class_="note"))


def _seeds_row(data: ReportData, name: str, family: Mapping[str, Any]) -> Markup:
    decoding, measure = data.verdict["decoding"], data.measures[data.verdict["primary_metric"]]
    numbers = family["over_seeds"][decoding][measure.name]
    each = ", ".join(shown(family["means"][member][decoding][measure.name], measure) for member in family["members"])
    model = tag("td", dotted(data, name), name)
    return tag("tr", model, tag("td", len(family["members"])), tag("td", *_mean_and_range(numbers, measure)), tag("td", each))


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.2g}"


def _sources(data: ReportData) -> Markup | None:
    """The metric that decides on the prompts of each source; nothing where there is only one."""
    counts = data.rows.get("prompts", {}).get("sources", {})
    if len(counts) < 2:
        return None
    models, measure = list(data.verdict["models"]), data.measures[data.verdict["primary_metric"]]
    names = [tag("th", dotted(data, name), name) for name in models]
    rows = [
        tag(
            "tr",
            tag("td", source),
            tag("td", f"{n['measured']}\u00a0of\u00a0{n['of']}", data_column="Prompts"),
            *_source_cells(data, source, models, measure),
        )
        for source, n in counts.items()
    ]
    head = tag("tr", tag("th", "Source"), tag("th", "Prompts"), *names)
    table = tag("table", tag("thead", head), tag("tbody", *rows), class_="folds")
    return join(tag("h3", "By source"), tag("div", table, class_="scroll"))


def _source_cells(data: ReportData, source: str, models: Sequence[str], measure: Measure) -> list[Markup]:
    found = data.sources.get(source, {})
    cells = {name: _mean_and_range(found[name], measure) if name in found else ("–",) for name in models}
    return [tag("td", *content, data_column=name) for name, content in cells.items()]


def metrics_section(data: ReportData) -> Markup:
    """Every metric of every model, with intervals and paired differences."""
    models = list(data.verdict["models"])
    baseline = data.verdict["baseline"]
    if len(models) > _MOST_COLUMNS:
        tables = [_by_model(data, models, decoding) for decoding in DECODINGS]
    else:
        names = [tag("th", dotted(data, name), name) for name in models]
        rows = [row for decoding in DECODINGS for row in _decoding_rows(data, models, decoding)]
        tables = [tag("table", tag("thead", tag("tr", tag("th", "Metric"), *names)), tag("tbody", *rows), class_="folds")]
    lead = (
        f"Mean, {data.confidence:.0%} interval, and Δ, the difference to {baseline} paired by prompt: green where it is better and red "
        "where it is worse by more than its interval. Each stands for itself; only the metric above decides."
    )
    return section("metrics", "All metrics", *(tag("div", table, class_="scroll") for table in tables if table), lead=lead)


def _by_model(data: ReportData, models: Sequence[str], decoding: str) -> Markup | None:
    """The metrics of one decoding, a model a row: for more models than a page has room for beside each other."""
    measured = {metric for name in models for metric in data.verdict["models"][name].get(decoding, {})}
    if not measured:
        return None
    metrics = [data.measures[metric] for metric in data.measures if metric in measured]
    head = tag("tr", tag("th", _DECODING_TITLES[decoding]), *(tag("th", measure.title) for measure in metrics))
    rows = [
        tag(
            "tr",
            tag("td", dotted(data, name), name),
            *(_cell(data, name, decoding, measure, measure.title) for measure in metrics),
        )
        for name in models
    ]
    return tag("table", tag("thead", head), tag("tbody", *rows), class_="folds")


def shown(value: float, measure: Measure, signed: bool = False) -> str:
    """A number with the measure's decimals; `signed` ones always bear + or −."""
    text = f"{value:{'+' if signed else ''},.{measure.digits}f}"
    # A rounded -0.00 is no loss.
    return text.replace("-", "" if not any(c in "123456789" for c in text) else "−")


def _standing(name: str, data: ReportData) -> Markup:
    if name == data.verdict["challenger"]:
        return tag("span", "challenger", class_="pill good")
    if name == data.verdict["baseline"]:
        return tag("span", "baseline", class_="pill")
    judgement = data.verdict["judgements"].get(name, "")
    return tag("span", judgement, class_=f"pill {({'better': 'good', 'worse': 'bad'}).get(judgement, '')}".strip())


def _plot(heading: str, rows: Sequence[IntervalRow], title: str, zero_line: bool) -> Markup:
    return tag("div", tag("h3", heading), interval_chart(rows, title, zero_line))


def _rows(data: ReportData, table: str, measure: Measure, signed: bool) -> list[IntervalRow]:
    """The deciding decoding's intervals in one table of the verdict, a row a model."""
    rows = []
    for name, metrics in data.verdict[table].items():
        numbers = metrics.get(data.verdict["decoding"], {}).get(measure.name)
        if numbers is None:
            continue
        mean, low, high = (shown(numbers[key], measure, signed) for key in ("mean", "low", "high"))
        text = f"{mean}  ({low} to {high})"
        rows.append(IntervalRow(name, numbers["mean"], numbers["low"], numbers["high"], text, data.colour_of(name)))
    return rows


def _decoding_rows(data: ReportData, models: Sequence[str], decoding: str) -> list[Markup]:
    measured = {metric for name in models for metric in data.verdict["models"][name].get(decoding, {})}
    if not measured:
        return []
    heading = tag("tr", tag("th", _DECODING_TITLES[decoding], colspan=len(models) + 1, scope="rowgroup"), class_="group")
    order = list(data.measures)
    return [heading, *(_metric_row(data, models, decoding, metric) for metric in sorted(measured, key=order.index))]


def _metric_row(data: ReportData, models: Sequence[str], decoding: str, metric: str) -> Markup:
    primary = (decoding, metric) == (data.verdict["decoding"], data.verdict["primary_metric"])
    cells = [_cell(data, name, decoding, data.measures[metric], name) for name in models]
    return tag("tr", tag("td", data.measures[metric].title), *cells, class_="primary" if primary else None)


def _cell(data: ReportData, name: str, decoding: str, measure: Measure, column: str) -> Markup:
    numbers = data.verdict["models"][name].get(decoding, {}).get(measure.name)
    if numbers is None:
        return tag("td", "–", data_column=column)
    paired = data.verdict["paired"].get(name, {}).get(decoding, {}).get(measure.name)
    least = data.verdict.get("min_prompts", 0)
    delta = (
        tag("span", f"Δ {shown(paired['mean'], measure, signed=True)}", class_=_delta_class(paired, measure, least))
        if paired
        else None
    )
    return tag("td", *_mean_and_range(numbers, measure), delta, data_column=column)


def _mean_and_range(numbers: Numbers, measure: Measure) -> tuple[Markup, Markup]:
    mean, low, high = (shown(numbers[key], measure) for key in ("mean", "low", "high"))
    return tag("span", mean, class_="mean"), tag("span", f"{low} – {high}", class_="range")


def _delta_class(paired: Numbers, measure: Measure, min_prompts: int) -> str:
    if measure.better == "neither" or paired["n"] < min_prompts or paired["low"] <= 0 <= paired["high"]:
        return "delta"
    return "delta good" if (paired["low"] > 0) == (measure.better == "higher") else "delta bad"
