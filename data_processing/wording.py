"""Words and names that messages of every room share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote, urlsplit


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`"did you mean 'x'? "` for the known name nearest to `name`, or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"did you mean '{near[0]}'? " if near else ""


def path_of(uri: str) -> Path:
    """The path that a `file://` address stands for."""
    return Path(unquote(urlsplit(uri).path))


def artifact_name(node: str, key: str) -> str:
    """What people call the artifact that a node made: `ppo-3f2a9c`."""
    return f"{node}-{key[:6]}"
