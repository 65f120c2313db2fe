"""Random values: of JSON, of texts as people and machines write them, and files with damage."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

TEXTS = (
    "", " ", "\n", "a", "yes", "No", "null", "0", "-1", "3.5", "1e309", "[]", "{}", "[1, 2]", '{"a": 1}', '"', "'", "\\", "\x00", "\ufeff",
    "<|im_end|>", "<|endoftext|>", "<think>", "</think>", "<think>\nwell\n</think>\n\nFine.", "{{ x }}", "{% for %}", "é", "\u200b", "💥",
    "한국어", "العربية", "\ud800", "\ufdd0", "a" * 500, "\n\nHuman: a\n\nAssistant: b", "\n\nHuman: a", "user", "assistant", "system",
    "../x", "~", "%", "NaN", "#### 12", "\r\n", "a,b\t\"c\"",
)  # fmt: skip
NUMBERS: tuple[Any, ...] = (
    0,
    1,
    -1,
    2,
    17,
    0.5,
    -0.0,
    1e-9,
    1e308,
    2**31,
    2**63,
    10**30,
    float("nan"),
    float("inf"),
    True,
    False,
)


def text(rng: random.Random) -> str:
    """A text of some words, or one of those that break things."""
    if rng.random() < 0.4:
        return rng.choice(TEXTS)
    return " ".join(
        rng.choice(("ferry", "noon", "Pier", "3,", "why?", "Heron.", rng.choice(TEXTS))) for _ in range(rng.randint(1, 8))
    )


def value(rng: random.Random, depth: int = 3) -> Any:
    """Any value of JSON, and numbers that JSON has not."""
    kind = rng.random()
    if depth and kind < 0.15:
        return [value(rng, depth - 1) for _ in range(rng.randint(0, 3))]
    if depth and kind < 0.3:
        keys = ("role", "content", "from", "value", "type", "text", "name", "id", "a", "", "function", "arguments", "weight")
        return {rng.choice(keys): value(rng, depth - 1) for _ in range(rng.randint(0, 3))}
    if kind < 0.4:
        return None
    return rng.choice(NUMBERS) if kind < 0.6 else text(rng)


def damage(rng: random.Random, path: Path) -> None:
    """Change the bytes of a file: cut, emptied, some of them others, some more."""
    content = bytearray(path.read_bytes())
    how = rng.randrange(6)
    place = rng.randrange(len(content) + 1)
    if how == 0:
        del content[place:]
    elif how == 1:
        content.clear()
    elif how == 2 and content:
        for _ in range(rng.randint(1, 8)):
            content[rng.randrange(len(content))] = rng.randrange(256)
    elif how == 3:
        content[place:place] = rng.randbytes(rng.randint(1, 20))
    elif how == 4:
        del content[place : place + rng.randint(1, 40)]
    else:
        content[:0] = rng.choice(
            (b"\xef\xbb\xbf", b"\xff\xfe", b"version https://git-lfs.github.com/spec/v1\n", b"<html>", b"\n\n", b"\x00")
        )
    path.write_bytes(bytes(content))


def places(item: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to everything inside a value of JSON."""
    children = item.items() if isinstance(item, dict) else enumerate(item) if isinstance(item, list) else ()
    return [path for key, child in children for path in ((*above, key), *places(child, (*above, key)))]


def at(item: Any, path: tuple[Any, ...]) -> Any:
    """What stands at a path."""
    for key in path:
        item = item[key]
    return item
