"""Compare this project with TRL on the same work, and write what was measured to benchmarks/results/.

    python benchmarks/run.py               every comparison
    python benchmarks/run.py C1 dpo        by criterion or by result file
    python benchmarks/run.py --quick C1    our arm alone at toy size: does it run?

The peer runs in its own environment, `.venv-peer` (make bench creates it; PEER_PYTHON names another interpreter). Nothing
else should run meanwhile: figures are CPU seconds, but caches and memory bandwidth are shared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from compare import growth, machine
from compare.cases import CASES, FULL, QUICK, Case, Part, Scale
from compare.duel import SEED, Arm, Running, apart, duel, python_of
from compare.same_logprobs import logprob_gap
from compare.verdict import judged, limited, measured
from compare.workload import Work, own_mib

RESULTS = Path(__file__).resolve().parent / "results"


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description="Compare this project with TRL on the same work")
    known = sorted({name for case in CASES for name in (*case.criteria, case.file)} | {"C10", "growth"})
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(known))
    parser.add_argument("--quick", action="store_true", help="our arms alone, toy size, no repeats")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON files")
    arguments = parser.parse_args()
    wanted = set(arguments.cases or known)
    if unknown := sorted(wanted - set(known)):
        parser.error(f"no comparison is called {', '.join(unknown)}; choose among {', '.join(known)}")
    arguments.results.mkdir(parents=True, exist_ok=True)
    scale = QUICK if arguments.quick else FULL
    for case in CASES:
        if wanted & {*case.criteria, case.file}:
            _write(arguments.results / f"{case.file}.json", run_case(case, scale))
    if wanted & {"C10", "growth"}:
        _write(arguments.results / "growth.json", growth.run(scale))


def run_case(case: Case, scale: Scale) -> dict[str, Any]:
    """The case's result, as it is written."""
    facts = machine.facts(python_of(Arm("", "trl", "", {})) if scale.peer else None)
    print(f"{', '.join(case.criteria)}: {case.title}", flush=True)
    parts = [run_part(part, scale) for part in case.parts(scale)]
    return {"title": case.title, "criteria": case.criteria, "machine": facts, "parts": parts}


def run_part(part: Part, scale: Scale) -> dict[str, Any]:
    """Figures of every arm, and of every target whose arms took part."""
    arms = [arm for arm in part.arms if scale.peer or arm.by == "ours"]
    # Short, because Ray's sockets live below it.
    with tempfile.TemporaryDirectory(prefix="af", dir="/tmp", ignore_cleanup_errors=True) as folder:
        work = Work(Path(folder))
        work.write(part.table, part.shape, part.steps, SEED)
        runs = (apart if part.apart else duel)(arms, work.folder, len(part.steps))
        units = [part.units_per_step(rows) for rows in work.steps()[1:]] * (2 if part.apart else 1)
        own = own_mib(work.model)
        gaps = {} if part.losses_differ else _sample_gaps(runs, work) if part.samples else None
    by_name = {run.arm.name: run for run in runs}
    targets = [t for t in part.targets if {t.ours, *t.theirs} <= by_name.keys()]
    return {
        "name": part.name,
        "unit": part.unit,
        "units_per_step": units,
        "arms": [_figures(run, units, own) for run in runs],
        "targets": [judged(target, by_name, own, gaps) for target in targets],
        "limits": [limited(limit, by_name) for limit in part.limits if limit.arm in by_name],
        "gaps_are_of_logprobs": part.samples,
    }


def _sample_gaps(runs: list[Running], work: Work) -> dict[str, float]:
    """Of every arm that kept samples: by how much its log-probs of them differ from ours (nats)."""
    prompts = [row["prompt_ids"] for row in work.steps()[0]]
    found = {run.arm.name: logprob_gap(work.model, run.turns.folder, prompts) for run in runs}
    return {name: gap for name, gap in found.items() if gap is not None}


def _figures(run: Running, units: list[float], own: float) -> dict[str, Any]:
    per_cpu_s = [n / taken.cpu_s for n, taken in zip(units, run.taken, strict=True)]
    return {
        "name": run.arm.name,
        "by": run.arm.by,
        "threads": run.arm.threads,
        "settings": run.arm.settings,
        "units_per_cpu_s": statistics.median(per_cpu_s),
        "units_per_wall_s": statistics.median(n / taken.wall_s for n, taken in zip(units, run.taken, strict=True)),
        "cpu_s": statistics.median(taken.cpu_s for taken in run.taken),
        "peak_mib": max(taken.peak_mib for taken in run.taken),
        "over_own_mib": max(measured(run, taken, "over_own_mib", own) for taken in run.taken),
        "start_cpu_s": run.start_cpu_s,
        "first_loss": run.first["loss"],
        "steps": [asdict(taken) for taken in run.taken],
    }


def _write(path: Path, result: dict[str, Any]) -> None:
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"wrote {path}", flush=True)


if __name__ == "__main__":
    main()
