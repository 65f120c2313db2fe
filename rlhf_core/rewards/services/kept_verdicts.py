"""Verdicts that were given, in memory and in files, so that nothing is asked twice.

Each process appends to a file of its own and reads those of all others when it starts: no lock is needed on any file system, and a
line that a crash has cut is left out.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any


@dataclass(frozen=True, slots=True)
class Verdict:
    """A score from 0 to 1, and the tokens it took: None where the judge does not say."""

    score: float
    tokens: int | None


class KeptVerdicts:
    """Verdicts by key, of those judges that `judge` tells apart. Without a `folder` they are kept in memory alone."""

    def __init__(self, folder: Path | None, judge: Any) -> None:
        self._lock = Lock()
        self._found: dict[str, Verdict] = {}
        self._file: Path | None = None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            name = key_of(judge)[:16]
            for path in sorted(folder.glob(f"{name}-*.jsonl")):
                self._found.update(_read(path))
            self._file = folder / f"{name}-{os.getpid()}-{secrets.token_hex(4)}.jsonl"

    def get(self, key: str) -> Verdict | None:
        """The verdict under a key; None where there is none yet."""
        return self._found.get(key)

    def keep(self, key: str, verdict: Verdict) -> None:
        """From any thread; in the file when this returns."""
        line = json.dumps({"key": key, "score": verdict.score, "tokens": verdict.tokens})
        with self._lock:
            self._found[key] = verdict
            if self._file is not None:
                with self._file.open("a", encoding="utf-8") as file:
                    file.write(f"{line}\n")


def key_of(value: Any) -> str:
    """A sha256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> Iterator[tuple[str, Verdict]]:
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry: Mapping[str, Any] = json.loads(line)
            yield str(entry["key"]), Verdict(float(entry["score"]), entry["tokens"])
        except (ValueError, KeyError, TypeError):
            continue
