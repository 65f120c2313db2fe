"""Every method's short run on the procedures task, side by side: runs benchmarks/methods.yaml and writes the table of docs/methods.md.

    python benchmarks/methods.py          all 75 stages, an hour or two on two cores; what an earlier run has done is taken from its store
    python benchmarks/methods.py RUN      only writes the table, from the folder of a run

Scores are those of the evaluate stage; processor time and memory are what training logged, of all its processes together.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from evaluation.report.data import Curve, ReportData
from evaluation.report.run import gather

ROOT = Path(__file__).resolve().parent.parent
PAGE, PRESET = ROOT / "docs" / "methods.md", ROOT / "benchmarks" / "methods.yaml"
BEGIN, END = "<!-- measured: python benchmarks/methods.py -->", "<!-- end of measured -->"
SCORE, KL, LENGTH = "procedures.score", "kl", "length"


def main() -> None:
    """Run, unless a run is named, and write."""
    run = Path(sys.argv[1]) if len(sys.argv) > 1 else run_preset(PRESET)
    text = PAGE.read_text(encoding="utf-8")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n" + "\n".join(table(gather(run))) + f"\n{END}{after}", encoding="utf-8")
    print(f"wrote {PAGE}")


def run_preset(preset: Path, *options: str) -> Path:
    """The folder of a run of the preset, which says where it is in its last line."""
    command = [sys.executable, "-m", "flows.cli", "run", "--preset", str(preset), *options]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = ""
        for line in process.stdout:
            print(line, end="", flush=True)
    if process.returncode:
        sys.exit(process.returncode)
    return Path(line.rsplit("described in ", 1)[1].strip())


def table(data: ReportData) -> Iterator[str]:
    """Lines of Markdown, a method a row, the untrained and the supervised model above them."""
    yield f"| method | score [{data.confidence:.0%}] | against SFT | KL to the base, nats | length, tokens | CPU-seconds a step | peak memory, MiB |"
    yield "|---|---|---|---|---|---|---|"
    for name, measured in data.verdict["models"].items():
        sampled = measured["sampled"]
        score, curves = sampled[SCORE], {curve.metric: curve for curve in data.curves.get(name, ())}
        interval = f"{score['mean']:.2f} [{score['low']:.2f}, {score['high']:.2f}]"
        told = [interval, _difference(data, name), f"{sampled[KL]['mean']:.0f}", f"{sampled[LENGTH]['mean']:.0f}"]
        yield f"| {f'`{name}`' if curves else name} | " + " | ".join([*told, _seconds(curves), _memory(curves)]) + " |"


def _difference(data: ReportData, name: str) -> str:
    found = data.verdict["paired"].get(name, {}).get("sampled", {}).get(SCORE)
    return "–" if found is None else f"{found['mean']:+.2f} [{found['low']:+.2f}, {found['high']:+.2f}]"


def _seconds(curves: Mapping[str, Curve]) -> str:
    curve = curves.get("cpu_seconds")
    return "–" if curve is None else f"{statistics.median(curve.values):.0f}"


def _memory(curves: Mapping[str, Curve]) -> str:
    roles: list[Any] = [max(c.values) for name, c in curves.items() if name.partition("/")[0] == "memory_mib"]
    return f"{sum(roles):.0f}" if roles else "–"


if __name__ == "__main__":
    main()
