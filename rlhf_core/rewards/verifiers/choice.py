"""The option that an answer names, as a reward."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any

from data_processing.errors import ConfigError
from rlhf_core.rewards.base import ScoredResponse
from rlhf_core.rewards.verifiers.answers import bare, nothing, reader, without_thinking
from rlhf_core.rewards.verifiers.exact import folded
from rlhf_core.rewards.verifiers.verifier import UnusableLabelError, Verifier, labels_of
from rlhf_core.settings.rewards.verifiers import AUTO, ChoiceReward

if TYPE_CHECKING:
    from rlhf_core.rewards.build import Around

# "B", "(B)", "B. Rome", "Option B", \text{B}; a letter that may be a word ("A cat") must be followed by a mark.
_LETTER = re.compile(
    r"\W*(?:\\(?:text|mathrm|textbf)\{)?(?:(?:the )?(?:option|choice|letter)\s+)?[(\[*]*(?:([B-HJ-Z])(?!\w)|([A-Z])(?=\W*$|[).:,\]*}]))",
    re.IGNORECASE,
)
_LOWER_CASE = re.compile(r"\W*[a-z]\W*")
_IN_BRACKETS = re.compile(r"\(([A-Z])\)")


@dataclass(frozen=True, slots=True)
class Asked:
    """The right letter, and the texts of the options in order, folded; none where they are not known."""

    right: str
    options: tuple[str, ...]


def build(source: ChoiceReward, around: Around) -> Verifier[Asked]:
    """From settings."""
    label = labels_of(source.kind)
    marked = reader(source.answer, nothing)

    def expected(response: ScoredResponse) -> Asked:
        options = options_of(response.columns.get(source.choices), response.prompt_id, source.choices)
        return Asked(_right(label(response), options), options)

    def read(text: str) -> str | None:
        """Of a text that marks none: the last letter in brackets, or all of it."""
        answer = marked(text)
        if answer is not None or source.answer != AUTO:
            return answer
        said = without_thinking(text).strip()
        return (_IN_BRACKETS.findall(said) or [said])[-1] or None

    def worth(answer: str, asked: Asked) -> float:
        return float(letter_of(answer, asked.options) == asked.right)

    return Verifier(source.kind, expected, read, worth)


def letter_of(answer: str, options: Sequence[str]) -> str | None:
    """The letter of the option that an answer is the text of, or that it names; None where it names none."""
    for form in (answer, bare(answer)):
        if (text := folded(form, ignore_case=True)) in options:
            return ascii_uppercase[options.index(text)]
    match = _LETTER.match(answer)
    if match is None or (match.group(match.lastindex or 0).islower() and not _LOWER_CASE.fullmatch(answer)):
        return None
    letter = match.group(match.lastindex or 0).upper()
    return letter if not options or letter in ascii_uppercase[: len(options)] else None


def options_of(column: Any, prompt_id: str, name: str) -> tuple[str, ...]:
    """The texts of a column: a list of them, {letter: text}, or {"text": [...]} with or without "label". None: there are none."""
    if isinstance(column, Mapping):
        column = column["text"] if isinstance(column.get("text"), Sequence) else [column[key] for key in sorted(column)]
    if column is None:
        return ()
    if isinstance(column, str) or not isinstance(column, Sequence) or not 2 <= len(column) <= len(ascii_uppercase):
        raise ConfigError(
            f"rewards: kind 'choice': column '{name}' of prompt {prompt_id} is {str(column)[:80]!r}, and must be a list of 2 to 26 "
            "texts; correct the row, or name another column with 'choices'"
        )
    return tuple(folded(str(text), ignore_case=True) for text in column)


def _right(label: str, options: Sequence[str]) -> str:
    """The letter that a label means: it is an option's text, a letter, or an option's index from 0."""
    if (letter := letter_of(label, options)) is not None:
        return letter
    if label.strip().isdecimal() and len(label) < 4 and int(label) < len(options):
        return ascii_uppercase[int(label)]
    raise UnusableLabelError(
        f"its label {label[:80]!r} names none of {len(options) or 26} options; give a letter, an option's text, or its index from 0"
    )
