"""Where the answer is in a response: one rule for all kinds that look for one.

Every search here takes time in proportion to the text, whatever the text is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from rlhf_core.rewards.verifiers.patterns import last_group
from rlhf_core.settings.rewards.verifiers import AUTO

Read = Callable[[str], str | None]  # the answer in a response, None where there is none

_THINK = re.compile(r"<(/?)think>")
_OPEN, _CLOSE = "<answer>", "</answer>"
# A brace that is no LaTeX \{ or \}, or the start of a box.
_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_HASHES = re.compile(r"^[ \t]*####[ \t]*(\S.*)$", re.MULTILINE)
_NAMED = re.compile(r"\banswer[ \t]*\**[ \t]*[:=][ \t]*\**[ \t]*(\S.*)$", re.IGNORECASE | re.MULTILINE)
# To the end of the sentence: a point inside of a number or a name does not end it.
_TOLD = re.compile(
    r"\banswer\s+is(?!\s+not\b)(?:[ \t]+therefore|[ \t]+thus)?[ \t]*:?[ \t]*\**[ \t]*([^\s:*](?:[^.!?\n]|[.!?](?=\S))*)",
    re.IGNORECASE,
)


def reader(rule: str, otherwise: Read) -> Read:
    """What finds the answer by `rule`, the setting `answer`; `otherwise` is asked of a text that marks none, in "auto" only."""
    if rule != AUTO:
        group = last_group(rule)
        return lambda text: _or_none(group(without_thinking(text)))

    def read(text: str) -> str | None:
        said = without_thinking(text)
        marked = marked_answer(said)
        return otherwise(said) if marked is None else marked

    return read


def whole(text: str) -> str | None:
    """All of a text, None for an empty one."""
    return _or_none(text)


def nothing(text: str) -> None:
    """For kinds whose answer must be marked."""


def without_thinking(text: str) -> str:
    """The text without <think>...</think>; a closing tag alone ends what the prompt began, an opening one alone never ended."""
    kept: list[str] = []
    start, is_open = 0, False
    for tag in _THINK.finditer(text):
        if tag.group(1):
            kept, start, is_open = (kept if is_open else []), tag.end(), False
        elif not is_open:
            kept.append(text[start : tag.start()])
            is_open = True
    return "".join(kept if is_open else [*kept, text[start:]])


def marked_answer(text: str) -> str | None:
    """The answer that is marked last in the text; of marks within one another the inner one counts. None where none is."""
    marks = (*_tagged(text), *_boxed(text), *(_spans(_HASHES, text)), *_spans(_NAMED, text), *_spans(_TOLD, text))
    for start, end in sorted(marks, reverse=True):
        if found := _or_none(text[start:end]):
            return found
    return None


def bare(answer: str) -> str:
    """An answer without what is only typography around it: emphasis, quotes, dollars, a final point."""
    return answer.strip().rstrip(".").strip("*_`\"'$ \t\n").rstrip(".").strip()


def _spans(pattern: re.Pattern[str], text: str) -> Iterator[tuple[int, int]]:
    return (match.span(1) for match in pattern.finditer(text))


def _tagged(text: str) -> Iterator[tuple[int, int]]:
    """The last <answer> that is closed."""
    end = text.rfind(_CLOSE)
    start = text.rfind(_OPEN, 0, max(end, 0))
    if start >= 0:
        # Closed by the first tag behind it.
        yield start + len(_OPEN), text.find(_CLOSE, start)


def _boxed(text: str) -> Iterator[tuple[int, int]]:
    """What stands in boxes whose braces close."""
    opened: list[tuple[int, bool]] = []
    for brace in _BRACES.finditer(text):
        if brace.group() == "}":
            start, is_box = opened.pop() if opened else (0, False)
            if is_box:
                yield start, brace.start()
        elif brace.group().endswith("{") and brace.group() != r"\{":
            opened.append((brace.end(), len(brace.group()) > 1))


def _or_none(text: str | None) -> str | None:
    return (text or "").strip() or None
