"""HTML from functions: everything that is not `Markup` is escaped, so model output can never become a tag."""

from __future__ import annotations

import html
import re

# What HTML forbids in text: control characters but tab and newline, lone surrogates, non-characters.
_FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
_VOID = frozenset({"meta", "br", "hr"})
_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9-]*")


class Markup(str):
    """Text that is HTML already; made by `tag` and `join`, or from literals of this project."""

    __slots__ = ()


Content = str | int | float | None


def escape(text: object) -> Markup:
    """Any value as HTML text, safe between tags and in quoted attributes; forbidden characters become U+FFFD."""
    return text if isinstance(text, Markup) else Markup(html.escape(_FORBIDDEN.sub("\ufffd", str(text)), quote=True))


def join(*children: Content, separator: str = "") -> Markup:
    """Children after one another, those that are no `Markup` escaped, None left out."""
    return Markup(separator.join(escape(child) for child in children if child is not None))


def tag(name: str, *children: Content, **attributes: Content) -> Markup:
    """An element. `class_` gives `class`, underscores give hyphens, attributes that are None are left out.

    Raises `ValueError` for a name that is no element name.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"'{name}' is not the name of an element")
    given = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value is not None}
    opening = "".join(f' {key}="{escape(value)}"' for key, value in given.items())
    if name in _VOID:
        return Markup(f"<{name}{opening}>")
    return Markup(f"<{name}{opening}>{join(*children)}</{name}>")


def preformatted(text: str, **attributes: Content) -> Markup:
    """A `pre` that keeps every line of `text`, a leading empty one included."""
    # Parsers drop one newline after the opening tag.
    return tag("pre", Markup("\n"), text, **attributes)
