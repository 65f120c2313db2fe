"""Write docs/performance.md and its plots from benchmarks/results/*.json, and from benchmarks/notes/*.md what is said by hand.

    python benchmarks/write_performance.py

No figure is typed here: a result that is not there has no section. Notes hold what a number cannot say: for a missed target
where the time goes, what was tried, and what the floor is.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import plots

ROOT = Path(__file__).resolve().parent.parent
RESULTS, NOTES = ROOT / "benchmarks" / "results", ROOT / "benchmarks" / "notes"
PAGE, IMAGES = ROOT / "docs" / "performance.md", ROOT / "docs" / "images" / "performance"
COMPARISONS = (
    "sft_speed",
    "sft_memory",
    "dpo",
    "grpo",
    "overlap",
    "reward_model",
    "kto",
    "unpaired_kto",
    "pair_methods",
    "distillation",
    "rloo",
    "ranks",
)
LESS_IS_ASKED = "over_own_mib"
DATA_MB_PER_S = 50

Result = dict[str, Any]


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description="Write docs/performance.md from the results")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page; plots go to images/performance beside it")
    arguments = parser.parse_args()
    results = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(arguments.results.glob("*.json"))}
    images = arguments.page.parent / "images" / "performance"
    text = "\n\n".join(page(results, images)) + "\n"
    arguments.page.write_text(text, encoding="utf-8")
    print(f"wrote {arguments.page}")


def page(results: dict[str, Result], images: Path) -> Iterator[str]:
    """The page's blocks, one after the other; plots are written on the way."""
    yield "# Performance"
    yield (NOTES / "introduction.md").read_text(encoding="utf-8").strip()
    yield from summary(results)
    yield from machine_and_method(results)
    for name in COMPARISONS:
        if name in results:
            yield from comparison(name, results[name], images)
    if "growth" in results:
        yield from growth(results["growth"], images)
    if "data_preparation" in results:
        yield from data_preparation(results["data_preparation"], images)
    if "rows_growth" in results:
        yield from rows_growth(results["rows_growth"])
    titled = ("logprob_memory", "Memory of log-probs"), ("orchestration", "Orchestration"), ("gpu", "On a GPU")
    for name, title in titled:
        yield from plain(name, title, results.get(name))
    yield from _note("exactness")


def summary(results: dict[str, Result]) -> Iterator[str]:
    """Every target with what was measured."""
    parts = [part for name in COMPARISONS for part in results.get(name, {}).get("parts", [])]
    rows = [_target_row(target) for part in parts for target in part["targets"]]
    rows += [_limit_row(limit) for part in parts for limit in part["limits"]]
    rows += [_figure_row("C8", row) for row in results.get("orchestration", {}).get("rows", []) if row["target"]]
    rows += [_figure_row("GPU", row) for row in results.get("gpu", {}).get("rows", []) if row["target"]]
    rows += _speed_rows(results["data_preparation"]) if "data_preparation" in results else []
    rows += _first_step_rows(results["rows_growth"]) if "rows_growth" in results else []
    yield "## Targets"
    yield (
        "Peer divided by ours for the same step, median with its 95 % interval; for memory ours divided by the peer's. "
        "The arms differ in their losses, or in their log-probs (nats) of the peer's samples where each samples for itself; "
        "*void* means by more than 1e-4. *Shown* has no bound."
    )
    yield table(("", "what", "peer's arm", "must reach", "measured", "interval", "arms differ by", "verdict"), sorted(rows))


def _figure_row(criterion: str, row: Result) -> tuple[str, ...]:
    """A row of a result that has its own verdicts: figure, value, target, reached."""
    verdict = "not taken" if row["value"] is None else _verdict(bool(row["reached"]))
    return criterion, row["figure"], "", row["target"], _shown(row["value"]), "", "", verdict


def _speed_rows(result: Result) -> list[tuple[str, ...]]:
    """The largest file of each row shape."""
    largest = {point["shape"]: point for point in sorted(result["points"], key=lambda point: int(point["rows"]))}
    target = f"at least {DATA_MB_PER_S:g}"
    return [
        (
            "C10",
            f"JSONL to Parquet, {point['rows']:,} rows of shape {shape}, MB/s",
            "",
            target,
            _shown(point["megabytes_per_s"]),
            "",
            "",
            _verdict(point["megabytes_per_s"] >= DATA_MB_PER_S),
        )
        for shape, point in largest.items()
    ]


def _first_step_rows(result: Result) -> list[tuple[str, ...]]:
    """The largest table of each recipe."""
    limit_s = result["first_step_limit_s"]
    starts = [(line["what"], line["points"][-1]) for line in result["lines"] if line["is_start"]]
    return [
        (
            "C10",
            f"{what}, {point['rows']:,} rows, seconds",
            "",
            f"at most {limit_s:g}",
            _shown(point["wall_s"]),
            "",
            "",
            _verdict(point["wall_s"] <= limit_s),
        )
        for what, point in starts
    ]


def _verdict(reached: bool) -> str:
    return "reached" if reached else "**missed**"


def _target_row(target: Result) -> tuple[str, ...]:
    ratio, bound = target["ratio"], target["bound"]
    gap = "" if target["gap"] is None else f"{target['gap']:.1e}"
    median, low, high, sign = ratio["median"], ratio["low"], ratio["high"], "≥"
    if target["measure"] == LESS_IS_ASKED:
        median, low, high, sign = 1 / median, 1 / high, 1 / low, "≤"
        bound = bound and 1 / bound
    asked = "" if bound is None else f"{sign} {bound:.2f} ×"
    verdict = f"**{target['verdict']}**" if target["verdict"] in ("missed", "void") else target["verdict"]
    interval = f"{low:.2f}–{high:.2f}"
    return target["criterion"], target["what"], target["against"], asked, f"{median:.2f} ×", interval, gap, verdict


def _limit_row(limit: Result) -> tuple[str, ...]:
    verdict = _verdict(limit["verdict"] == "reached")
    value, bound = f"{100 * limit['value']:.1f} %", f"≤ {100 * limit['at_most']:.0f} %"
    return limit["criterion"], limit["what"], "", bound, value, "", "", verdict


def machine_and_method(results: dict[str, Result]) -> Iterator[str]:
    """What the comparisons ran on. Results taken at different times say so by their dates."""
    machines = {name: results[name]["machine"] for name in (*COMPARISONS, "growth") if name in results}
    if not machines:
        return
    yield "## Machine"
    first = next(iter(machines.values()))
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    peer = ", ".join(f"{name} {version}" for name, version in first.get("peer_versions", {}).items())
    yield "\n".join(
        [
            f"- {first['cores']} cores, {first['processor']} ({', '.join(first['vector_flags'])}), {first['memory_gib']} GiB",
            f"- ours: Python {first['python']}, {versions}",
            f"- peer: {peer}",
        ]
    )
    rows = [(name, f"`python benchmarks/run.py {name}`", m["date"], f"{m['load_at_start']:.2f}") for name, m in machines.items()]
    yield table(("result", "command", "taken", "load average before"), rows)


def comparison(name: str, result: Result, images: Path) -> Iterator[str]:
    """One case: a plot and a table for every part."""
    yield f"## {result['title']} ({', '.join(result['criteria'])})"
    for number, part in enumerate(result["parts"]):
        picture = images / f"{name}-{number}.svg"
        plots.bars(picture, part["arms"], part["units_per_step"], f"{part['unit']} a CPU-second")
        yield f"### {part['name']}"
        yield f"![{part['unit']} a CPU-second, {part['name']}](images/performance/{picture.name})"
        yield arms_table(part)
    yield from _note(name)


def arms_table(part: Result) -> str:
    """Medians of every arm; settings are those that differ from its defaults."""
    unit = part["unit"]
    head = (
        "arm",
        f"{unit} / CPU-s",
        f"{unit} / s",
        "CPU-s a step",
        "peak MiB",
        "over the model's own MiB",
        "CPU-s until step 1 is done",
        "settings",
    )
    rows = [
        (
            arm["name"],
            f"{arm['units_per_cpu_s']:.4g}",
            f"{arm['units_per_wall_s']:.4g}",
            f"{arm['cpu_s']:.2f}",
            f"{arm['peak_mib']:.0f}",
            _over_own(arm),
            f"{arm['start_cpu_s']:.0f}",
            "" if arm["by"] == "ours" else ", ".join(f"`{k}={v}`" for k, v in arm["settings"].items()),
        )
        for arm in part["arms"]
    ]
    return table(head, rows)


def _over_own(arm: Result) -> str:
    """Of arms with several processes it is not known what libraries take in each."""
    several = "rollout" in arm["settings"] or arm["settings"].get("engine", {}).get("world_size", 1) > 1
    return "" if several else f"{arm['over_own_mib']:.0f}"


def growth(result: Result, images: Path) -> Iterator[str]:
    """Curves over sequence length and vocabulary."""
    yield f"## {result['title']} (C10)"
    for number, curve in enumerate(result["curves"]):
        picture = images / f"growth-{number}.svg"
        names = {"cpu_s": "CPU-seconds a step", "over_own_mib": "peak MiB over the model's own"}
        lines = {names[y]: [(p["x"], p[y]) for p in curve["points"] if p[y] > 0] for y in names}
        plots.growth(picture, lines, curve["x"])
        yield f"![growth with {curve['x']}](images/performance/{picture.name})"
        fitted = [f"{names[y].lower()} grow with exponent {e:.2f}" for y, e in curve["exponents"].items() if e is not None]
        yield f"With {curve['x']}: {'; '.join(fitted)}."
        yield table((curve["x"], *names.values()), [(f"{p['x']:.0f}", *(f"{p[y]:.4g}" for y in names)) for p in curve["points"]])
    yield from _note("growth")


def data_preparation(result: Result, images: Path) -> Iterator[str]:
    """Rows 10³ to 10⁶, JSONL to Parquet."""
    yield f"## {result['title']} (C10)"
    points = result["points"]
    first_shape = [p for p in points if p["shape"] == points[0]["shape"]]
    lines = {name: [(p["rows"], p[y]) for p in first_shape] for y, name in (("wall_s", "seconds"), ("peak_mib", "peak MiB"))}
    plots.growth(images / "data_preparation.svg", lines, "rows")
    yield "![seconds and peak memory of data preparation](images/performance/data_preparation.svg)"
    yield "Fitted: " + ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in result["fits"].items()) + "."
    yield table(tuple(name.replace("_", " ") for name in points[0]), [tuple(str(v) for v in p.values()) for p in points])
    yield from _note("data_preparation")


def rows_growth(result: Result) -> Iterator[str]:
    """CPU-seconds of all work on all rows, and seconds where somebody waits for a first step."""
    yield f"## {result['title']} (C10)"
    sizes = [point["rows"] for point in result["lines"][0]["points"]]
    head = ("CPU-seconds with so many rows", *(f"{rows:,}" for rows in sizes), "exponent", f"seconds, {sizes[-1]:,} rows")
    yield table(head, [_growth_row(line) for line in result["lines"]])
    yield from _note("rows_growth")


def _growth_row(line: Result) -> tuple[str, ...]:
    points = line["points"]
    exponent, wall_s = f"{line['cpu_seconds_exponent']:.2f}", f"{points[-1]['wall_s']:.3g}"
    return line["what"], *(f"{point['cpu_s']:.2g}" for point in points), exponent, wall_s


def plain(name: str, title: str, result: Result | None) -> Iterator[str]:
    """A result without a form of its own: its rows as a table, its other figures as another. Without one, what is missing."""
    if result is None:
        missing = list(_note(f"{name}_missing"))
        yield from [f"## {title}", *missing] if missing else []
        return
    yield f"## {result.get('title', title)}"
    rows = [row for row in result.get("rows", []) if isinstance(row, dict)]
    if rows:
        yield table(tuple(rows[0]), [tuple(_shown(row.get(key)) for key in rows[0]) for row in rows])
    figures = [(key.replace("_", " "), _shown(value)) for key, value in result.items() if key not in ("title", "rows")]
    yield table(("figure", "value"), figures)
    yield from _note(name)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(_shown(item) for item in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _note(name: str) -> Iterator[str]:
    path = NOTES / f"{name}.md"
    if path.exists():
        yield path.read_text(encoding="utf-8").strip()


if __name__ == "__main__":
    main()
