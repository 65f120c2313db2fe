"""`make faults`: the faults one after the other, and the table of docs/operations.md from what came of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

_PAGE = Path(__file__).resolve().parents[2] / "docs" / "operations.md"
_BEGIN, _END = "<!-- faults -->", "<!-- end of faults -->"
_COLUMNS = (
    "fault",
    "ended",
    "exit code",
    "then",
    "steps before",
    "steps done again",
    "published",
    "attempts",
    "left running",
    "same weights",
)


def main() -> int:
    """Run, write, and return pytest's exit code."""
    # A network namespace begins without its loopback.
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "faults.jsonl"
        code = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "tests/faults", "-p", "no:cacheprovider"],
            cwd=_PAGE.parents[1],
            env={**os.environ, "ALIGNFLOW_FAULTS": str(place), "OMP_NUM_THREADS": "1"},
            check=False,
        ).returncode
        rows = [json.loads(line) for line in place.read_text(encoding="utf-8").splitlines()] if place.is_file() else []
    lines = [_line(_COLUMNS), _line(["---"] * len(_COLUMNS)), *(_line([_cell(row[name]) for name in _COLUMNS]) for row in rows)]
    before, _, rest = _PAGE.read_text(encoding="utf-8").partition(_BEGIN)
    after = rest.partition(_END)[2]
    _PAGE.write_text("\n".join([before + _BEGIN, *lines, _END + after]), encoding="utf-8")
    return code


def _cell(value: object) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def _line(cells: object) -> str:
    return "| " + " | ".join(cells) + " |"  # type: ignore[arg-type]


if __name__ == "__main__":
    sys.exit(main())
