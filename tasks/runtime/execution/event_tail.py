"""Reading files of lines while they grow: `events.jsonl`, `log.txt`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class LineTail:
    """Hands out the lines of a file once each; the file may appear later. A torn last line waits for its end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read(self) -> list[bytes]:
        """The lines since the last call, in order, without their ends."""
        try:
            with self._path.open("rb") as stream:
                stream.seek(self._offset)
                whole, newline, _ = stream.read().rpartition(b"\n")
        except FileNotFoundError:
            return []
        self._offset += len(whole) + len(newline)
        return whole.split(b"\n") if newline else []


class EventTail:
    """Hands out the events of a file once each, as `LineTail` its lines."""

    def __init__(self, path: Path) -> None:
        self._lines = LineTail(path)

    def read(self) -> list[dict[str, Any]]:
        """The events since the last call, in order."""
        return [event for line in self._lines.read() if (event := _parse(line))]


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:  # what a killed writer left in the middle of a file
        return None
    return event if isinstance(event, dict) else None
