"""Numbers with units as people and models write them, read exactly. Nothing is evaluated.

A number has at most `MOST_DIGITS` digits and as large an exponent; what is longer, or a term of an expression ("2 + 3", "9**9"),
is no number here. Of a text only so much is read that a hostile one costs milliseconds.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any

MOST_DIGITS = 1000
PERCENT = "%"
MOST_CHARACTERS = 4000
_LOOKED_BACK = 12

# Currencies, and what is only there for how LaTeX sets it.
_DROPPED = re.compile(r"[$€£¥]|\\[!,;:]|\\left|\\right|(?<=\d)\{,\}(?=\d{3})")
_WRAPPED = re.compile(r"\\(?:text|mathrm|textbf|mathbf)\s*\{([^{}]*)\}")
_DEGREES = re.compile(r" ?\^ ?\{? ?\\circ ?\}? ?")
_SUPERSCRIPT = re.compile(r"(?<=10)⁻?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_FRAC = re.compile(r"(\d?)\\[dt]?frac\s*(?:\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}|(\d)\s*(\d))")
_SIGNS = str.maketrans({"−": "-", "–": "-", "∕": "/", "⁄": "/", "\u00a0": " ", "~": " "})

_DIGITS = r"(?:\d{1,3}(?:[,'\u2009\u202f]\d{3})++(?!\d)|\d++)"
_NUMBER = re.compile(
    rf"""(?<![\w.])
    (?P<sign>(?<![\w)\]])[-+]\s?)?+
    (?:
      10\s?(?:\^|\*\*)\s?\{{?(?P<ten>[-+]?\d++)\}}?+
      |
      (?:(?P<ones>{_DIGITS})\s(?={_DIGITS}/\d))?+
      (?P<number>{_DIGITS}?+(?:(?<=\d)\.\d++|(?<!\d)\.\d++)?+)(?<=\d)
      (?:[eE](?P<exponent>[-+]?\d++)|\s?(?:×|\\times|\\cdot|\*|x)\s?10\s?(?:\^|\*\*)\s?\{{?(?P<power>[-+]?\d++)\}}?+)?+
      (?:\s?/\s?(?P<below>{_DIGITS}(?:\.\d++)?+))?+
    )""",
    re.VERBOSE,
)
_OPERATOR = r"(?:\*\*|[-+*/^×÷]|\\times|\\cdot|\\div)"
_TERM_AFTER = re.compile(rf"\s{{0,3}}{_OPERATOR}\s{{0,3}}-?[\d({{\\]")
_TERM_BEFORE = re.compile(rf"[\d)}}]\s{{0,3}}{_OPERATOR}\s{{0,3}}$")
_OPERAND_BEFORE = re.compile(r"[\d)}]\s{0,3}$")
_PERCENT = re.compile(r"\*{0,2}\s{0,3}(?:\\?%|percent\b|per cent\b)")
_FACTOR = r"[A-Za-zµμΩ°]{1,30}(?:\^?[²³]|\^?\{?[1-9](?!\d)\}?|\^\{?-[1-9](?!\d)\}?)?+"
_UNIT = re.compile(rf"\*{{0,2}}\s{{0,3}}({_FACTOR}(?:\s?[/*·]\s?{_FACTOR}){{0,3}}+)")
_PARTS = re.compile(r"([/*·]?)\s?([A-Za-zµμΩ°]+)([²³]|[-0-9^{}]*)")
# Words that are also names of units, where another word follows.
_WORDS = re.compile(r"\s{0,3}(?:a|an|are|as|at|h?as|in|is|of|or|to)\s[A-Za-z]", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number as it is written; `unit` is "%", what stands behind the number and looks like a unit, or empty."""

    value: Fraction
    unit: str = ""


def plain(text: str) -> str:
    """The text without LaTeX around and in its numbers."""
    text = _WRAPPED.sub(r" \1 ", text.translate(_SIGNS))
    text = _DEGREES.sub("°", _DROPPED.sub("", text))
    text = _SUPERSCRIPT.sub(lambda m: "^" + unicodedata.normalize("NFKC", m[0]).translate(_SIGNS), text)
    return _FRAC.sub(lambda m: f"{m[1]}{' ' * bool(m[1])}{m[2] or m[4]}/{m[3] or m[5]}", text)


def quantities(text: str) -> list[Quantity | None]:
    """The numbers of the first `MOST_CHARACTERS` of a text in order, None for each that cannot be read as one."""
    text, found, end = plain(text[:MOST_CHARACTERS]), list[Quantity | None](), 0
    while match := _NUMBER.search(text, end):
        unit, end = _unit_after(text, match.end())
        value = None if _is_term(match, text) else _value(match)
        found.append(None if value is None else Quantity(value, unit))
    return found


def _is_term(match: re.Match[str], text: str) -> bool:
    """Whether the number is one of several in an expression."""
    before = text[max(match.start() - _LOOKED_BACK, 0) : match.start()]
    is_added = match["sign"] and _OPERAND_BEFORE.search(before)
    return bool(is_added or _TERM_BEFORE.search(before) or _TERM_AFTER.match(text, match.end()))


def _value(match: re.Match[str]) -> Fraction | None:
    if len(match.group()) > MOST_DIGITS:
        return None
    exponent = match["ten"] or match["exponent"] or match["power"] or "0"
    if len(exponent.lstrip("+-0")) > 4 or abs(int(exponent)) > MOST_DIGITS:
        return None
    below = _read(match["below"] or "1")
    if not below:
        return None
    value = _read(match["ones"] or "0") + _read(match["number"] or "1") * Fraction(10) ** int(exponent) / below
    return -value if (match["sign"] or "").startswith("-") else value


def _read(digits: str) -> Fraction:
    return Fraction(re.sub(r"[,'\u2009\u202f]", "", digits))


def _unit_after(text: str, end: int) -> tuple[str, int]:
    """What looks like a unit behind a number that ends there, and where that ends."""
    if percent := _PERCENT.match(text, end):
        return PERCENT, percent.end()
    unit = None if _WORDS.match(text, end) else _UNIT.match(text, end)
    return (unit[1], unit.end()) if unit else ("", end)


@cache
def _registry() -> Any:
    import pint

    return pint.UnitRegistry(non_int_type=Fraction)


@cache
def unit_named(text: str) -> Any:
    """The pint unit that a text such as "km/h" or "m^2" names, None where one of its words is none. Only words are looked up."""
    unit = _registry().dimensionless
    for sign, name, power in _PARTS.findall(text):
        if (word := _known(name)) is None:
            return None
        exponent = int(power.translate(_POWERS).strip("^{}") or 1)
        factor = _registry().Unit(word) ** exponent
        unit = unit / factor if sign == "/" else unit * factor
    return unit


def _known(name: str) -> str | None:
    """The name as the registry has it; words of three letters and more whatever their case."""
    names = [name, name.lower()] if len(name) > 2 else [name]
    return next((known for known in names if known.isascii() and _registry().parse_unit_name(known)), _SPECIAL.get(name))


def converted(quantity: Quantity, unit: Any) -> Fraction | None:
    """The number in another unit; None where that measures something else, or the quantity's is no unit."""
    import pint

    own = unit_named(quantity.unit)
    if own is None:
        return None
    try:
        return Fraction(_registry().Quantity(quantity.value, own).to(unit).magnitude)
    except pint.PintError:
        return None


_POWERS = str.maketrans({"²": "2", "³": "3"})
_SPECIAL = {"°": "degree", "°C": "degree_Celsius", "°F": "degree_Fahrenheit", "µm": "micrometer", "μm": "micrometer", "Ω": "ohm"}
