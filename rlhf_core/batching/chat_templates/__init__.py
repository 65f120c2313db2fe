"""Chat templates that come with alignflow, for model families whose own cannot train on several turns.

Each keeps every assistant turn as it was, so that a conversation's beginning renders alike whatever follows. Importable
without torch, so that plans can name them.
"""

from __future__ import annotations

import re
from pathlib import Path

from data_processing.errors import ConfigError

_FOLDER = Path(__file__).parent
BUNDLED = tuple(sorted(path.stem for path in _FOLDER.glob("*.jinja")))
_MARK = re.compile(r"<[|｜][^<>]+[|｜]>")


def read_template(chosen: str) -> str:
    """The Jinja template that `model.chat_template` asks for: a bundled one, a file, or `chosen` itself.

    Raises `ConfigError` for what is none of them.
    """
    if chosen in BUNDLED:
        return (_FOLDER / f"{chosen}.jinja").read_text(encoding="utf-8")
    if "{{" in chosen or "{%" in chosen:
        return chosen
    try:
        return Path(chosen).expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model.chat_template: {chosen!r} is neither a bundled template ({', '.join(BUNDLED)}) nor a file that can be read "
            f"({error}) nor Jinja: give one of them"
        ) from error


def marks(template: str) -> set[str]:
    """The control tokens that stand in a template."""
    return set(_MARK.findall(template))
