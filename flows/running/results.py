"""What a finished run shows: the verdict as a table of cells, for terminals and for Prefect."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_SHOWN = ("reward", "kl", "length", "perplexity")


@dataclass(frozen=True)
class VerdictTable:
    """Rows of text: a model each; the columns are measures, with 95 % (or as configured) intervals."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    conclusion: str


def verdict_table(verdict: Mapping[str, Any]) -> VerdictTable:
    """The table of a `verdict.json`."""
    measures = list(_columns(verdict))
    difference = (verdict["decoding"], verdict["primary_metric"])
    baseline = verdict["baseline"]
    rows = []
    for model, table in verdict["models"].items():
        cells = [_cell(table.get(decoding, {}).get(metric)) for decoding, metric in measures]
        paired = verdict["paired"].get(model, {}).get(difference[0], {}).get(difference[1])
        rows.append((model, *cells, _cell(paired, signed=True)))
    columns = ("model", *(f"{metric} ({decoding})" for decoding, metric in measures), f"{difference[1]} vs {baseline}")
    challenger = verdict.get("challenger")
    conclusion = f"challenger: {challenger or 'none'}. {verdict.get('reason', '')}".strip()
    return VerdictTable(columns, tuple(rows), conclusion)


def markdown(table: VerdictTable, run: str, report: str, mlflow: str | None) -> str:
    """The table as Markdown, with the run's name, where the report is, and the page in MLflow where there is one."""
    lines = [f"# {run}", "", _line(table.columns), _line(["---"] * len(table.columns))]
    lines += [_line(row) for row in table.rows]
    lines += ["", table.conclusion, "", f"Report: [{report}]({report})"]
    lines += ["", f"MLflow: [{run}]({mlflow})"] if mlflow else []
    return "\n".join([*lines, ""])


def _columns(verdict: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Decoding and metric of each column: what decides first, the same in other decodings, then the measures beside it."""
    decodings = list(dict.fromkeys(d for table in verdict["models"].values() for d in table))
    first = verdict["decoding"]
    ordered = [first, *(d for d in decodings if d != first)]
    has = {(d, m) for table in verdict["models"].values() for d, metrics in table.items() for m in metrics}
    for decoding in ordered:
        if (decoding, verdict["primary_metric"]) in has:
            yield decoding, verdict["primary_metric"]
    for metric in _SHOWN:
        for decoding in ordered:
            if (decoding, metric) in has and metric != verdict["primary_metric"]:
                yield decoding, metric
                break


def _cell(interval: Mapping[str, float] | None, signed: bool = False) -> str:
    if interval is None:
        return "–"
    sign = "+" if signed else ""
    return f"{interval['mean']:{sign}.3g} [{interval['low']:{sign}.3g}, {interval['high']:{sign}.3g}]"


def _line(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"
