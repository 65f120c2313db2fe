"""A home on a disk that is mounted to be read: what looks works, what writes is refused in one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.runtime.contract.home import Home

REPOSITORY = Path(__file__).resolve().parents[2]
can_mount = pytest.mark.skipif(
    subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode != 0, reason="takes a mount namespace"
)

# Each command, its exit code on a line of its own after it.
COMMANDS = """
mount --bind "$ALIGNFLOW_HOME" "$ALIGNFLOW_HOME" && mount -o remount,ro,bind "$ALIGNFLOW_HOME" || exit 77
for command in "plan --preset tiny" "cache ls" "runs" "status" "run --preset tiny"; do
  echo "== $command"; $PYTHON -m flows.cli $command 2>&1; echo "exit $?"
done
"""


@can_mount
@pytest.mark.slow
def test_a_home_that_cannot_be_written_is_shown_and_runs_are_refused(tmp_path: Path) -> None:
    home = Home.open(tmp_path / "my home")
    environment = {**os.environ, "ALIGNFLOW_HOME": str(home.root), "PYTHONPATH": str(REPOSITORY), "PYTHON": sys.executable}
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", COMMANDS], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode != 77, "the home could not be mounted to be read"
    said = dict(part.split("\n", 1) for part in done.stdout.split("== ")[1:])
    assert "Traceback" not in done.stdout
    for command in ("plan --preset tiny", "cache ls", "runs", "status"):
        assert said[command].endswith("exit 0\n"), said[command]
    assert "stages run" in said["plan --preset tiny"]
    refused = said["run --preset tiny"].splitlines()
    assert refused[-1] == "exit 10"
    assert [line for line in refused if line.startswith("error: ")] == [
        f"error: ALIGNFLOW_HOME: {home.root} cannot be written to; name a folder you may write to"
    ]
