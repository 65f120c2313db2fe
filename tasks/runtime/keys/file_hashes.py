"""sha256 of files, remembered while a file's size, mtime and inode stay the same.

Verifying hundreds of megabytes on every cache hit would cost more than many stages; a change on disk that keeps all
three is what a full verification is for.
"""

from __future__ import annotations

import json
from pathlib import Path

from data_processing.file_hash import file_sha256
from tasks.runtime.contract.spec import write_json


class HashCache:
    """Known hashes of one artifact's files, kept in the JSON file `place`. `trust=False` hashes everything again."""

    def __init__(self, place: Path, *, trust: bool) -> None:
        self._place = place
        self._known: dict[str, list[int | str]] = _load(place) if trust else {}
        self._changed = False

    def sha256(self, name: str, path: Path) -> str:
        """Hash of the file at `path`, remembered under `name`."""
        stat = path.stat()
        stamp: list[int | str] = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
        known = self._known.get(name)
        if known and known[:3] == stamp:
            return str(known[3])
        digest = file_sha256(path)
        self._known[name] = [*stamp, digest]
        self._changed = True
        return digest

    def save(self) -> None:
        """Keep what was computed for the next reader."""
        if self._changed:
            write_json(self._place, self._known)


def _load(place: Path) -> dict[str, list[int | str]]:
    try:
        known: dict[str, list[int | str]] = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known
