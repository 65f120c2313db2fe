"""What is computed part after part and kept below the resume folder, so that the next attempt computes the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_part(place: Path, value: Any) -> None:
    """A part as JSON, whole or not there; numbers keep every bit."""
    part = place.with_suffix(".part")
    part.write_text(json.dumps(value), encoding="utf-8")
    part.rename(place)
