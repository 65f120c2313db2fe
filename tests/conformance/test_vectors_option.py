"""The `--vectors` option takes any folder, and what it cannot check fails instead of passing unseen."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SUITE = Path(__file__).with_name("test_objectives_match_vectors.py")


def test_an_operation_without_a_function_fails(tmp_path: Path) -> None:
    case = {"id": "new", "op": "no_such_op", "inputs": {}, "params": {}, "expected": {}, "tol": 1e-6}
    (tmp_path / "more.json").write_text(json.dumps({"format": 1, "cases": [case]}))
    result = _run_suite(tmp_path)
    assert result.returncode == 1
    assert "op 'no_such_op' has no function here" in result.stdout


def test_a_folder_without_vectors_is_an_error(tmp_path: Path) -> None:
    result = _run_suite(tmp_path)
    assert result.returncode != 0
    assert "no vector files" in result.stdout + result.stderr


def _run_suite(vectors: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", str(SUITE), "--vectors", str(vectors), "-p", "no:cacheprovider"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=SUITE.parents[2])
