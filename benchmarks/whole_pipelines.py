"""Run the whole preset `tiny` on a tiny random model of each architecture, and write what came of it into docs/models.md.

    python benchmarks/whole_pipelines.py [--only NAME ...]

Every stage is a process of its own, as in any run; training takes one step. A minute and a half for each architecture on a free
core; rows of architectures that are not named stay as they are on the page.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.architectures import PAGE, rows_on, table, with_table  # noqa: E402
from tests.architectures import ARCHITECTURES, architecture  # noqa: E402

COMMAND = "python benchmarks/whole_pipelines.py"
COLUMNS = ("model type", "the whole pipeline", "stages", "seconds")
POSITIONS = 2048  # what the preset's lengths need
SETTINGS = {"runtime.executor": "subprocess", "sft.max_steps": 1, "reward_model.max_steps": 1, "preference.max_steps": 1}
REFUSED = 10


def main() -> None:
    """Run, and write the table after each architecture."""
    parser = argparse.ArgumentParser(description="Write the table of whole pipelines in docs/models.md")
    parser.add_argument("--only", action="append", choices=list(ARCHITECTURES), help="an architecture to run; without any all")
    parser.add_argument("--page", type=Path, default=PAGE, help="a page with the two markers of the table")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.only or ARCHITECTURES:
            row = of_pipeline(name, Path(folder))
            print(*row, sep="\t", flush=True)
            page = arguments.page.read_text(encoding="utf-8")
            rows = {old[0]: old for old in rows_on(page, COMMAND)} | {name: row}
            ordered = [rows[known] for known in ARCHITECTURES if known in rows]
            arguments.page.write_text(with_table(page, table([COLUMNS, *ordered]), COMMAND), encoding="utf-8")


def of_pipeline(name: str, folder: Path) -> tuple[str, ...]:
    """The row of one architecture."""
    positions = "n_positions" if name == "gpt2" else "max_position_embeddings"
    began, ran = time.monotonic(), run_tiny(architecture(folder, name, **{positions: POSITIONS}), folder / "home")
    stages = len(re.findall(r" done in ", ran.stdout))
    return name, came_of(ran), str(stages), f"{time.monotonic() - began:.0f}"


def run_tiny(model: Path, home: Path) -> subprocess.CompletedProcess[str]:
    """`alignflow run --preset tiny` on a model folder, with one step of training a stage."""
    settings = {"model.path": model} | SETTINGS
    command = [sys.executable, "-m", "flows.cli", "run", "--preset", "tiny"]
    for field, value in settings.items():
        command += ["--set", f"{field}={value}"]
    environment = os.environ | {"ALIGNFLOW_HOME": str(home), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=model.parent)


def came_of(ran: subprocess.CompletedProcess[str]) -> str:
    """Works, or refused before anything started, or what failed."""
    if not ran.returncode:
        return "works"
    said = ran.stderr.strip().splitlines()
    gate = ran.returncode == REFUSED and " started" not in ran.stdout
    return f"{'refused at the gate' if gate else f'**fails**, exit {ran.returncode}'}: {said[-1] if said else ''}"


if __name__ == "__main__":
    main()
