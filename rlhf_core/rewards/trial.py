"""One call of each Python reward function on a few prompts, before anything is started, in a process of its own.

A process can be ended whatever the function does. `python -m rlhf_core.rewards.trial FOLDER` is that process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_processing.errors import ConfigError
from rlhf_core.rewards.base import ScoredResponse
from rlhf_core.rewards.errors import TransientRewardError
from rlhf_core.rewards.python_function import PythonScorer

LIMIT_S = 60.0
_ASKED, _FOUND = "asked.json", "found.json"
_ANSWER = "This is an answer."


def try_function(path: str, prompts: Sequence[Mapping[str, Any]], limit_s: float = LIMIT_S) -> str | None:
    """Import the function at `path` and call it on made-up answers to `prompts` (rows of the prompts table; none: import only).

    Returns what may work later, in words, None where it works now. Raises `ConfigError` for what can never work, and for a
    function that does not return within `limit_s` seconds, the import included.
    """
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, _ASKED).write_text(
            json.dumps({"path": path, "prompts": list(prompts), "limit_s": limit_s}), encoding="utf-8"
        )
        try:
            done = subprocess.run(
                [sys.executable, "-P", "-m", __spec__.name if __spec__ else __name__, folder],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=2 * limit_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ConfigError(
                f"reward function '{path}' did not return within {limit_s:g} s from one call on {len(prompts)} prompts, and could "
                "not be ended; look at what it waits for, or leave this check out (--no-check)"
            ) from None
        found = Path(folder, _FOUND)
        if not found.is_file():
            last = (done.stderr.strip().splitlines() or ["no output"])[-1]
            raise ConfigError(
                f"reward function '{path}': its process ended with code {done.returncode} when it was tried: {last}"
            )
        error, later = json.loads(found.read_text(encoding="utf-8"))
    if error:
        raise ConfigError(f"{error} (tried on {len(prompts)} prompts before the start; --no-check leaves this out)")
    return str(later) if later else None


def main(folder: Path) -> None:
    """Try what `asked.json` names and write what is wrong with it to `found.json`: [for good, for now]."""
    asked = json.loads((folder / _ASKED).read_text(encoding="utf-8"))
    error = later = None
    try:
        scorer = PythonScorer(asked["path"], asked["limit_s"])
        if responses := [_response(row) for row in asked["prompts"]]:
            scorer.score(responses)
    except TransientRewardError as raised:
        later = str(raised)
    except ConfigError as raised:
        error = str(raised)
    (folder / _FOUND).write_text(json.dumps([error, later]), encoding="utf-8")


def _response(row: Mapping[str, Any]) -> ScoredResponse:
    columns = json.loads(row["extra"]) if row.get("extra") else {}
    return ScoredResponse(row["id"], row["prompt"], row["label"], [0], [0, 0, 0, 0], _ANSWER, columns)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    sys.stdout.flush()
    # A thread that the function has left behind must not keep the check waiting.
    os._exit(0)
