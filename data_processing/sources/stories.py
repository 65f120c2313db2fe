"""Stories as rows: what comes before a chapter is the prompt, the chapter its completion. Source: vrcli.md, section 2.

A text is a novel, which is cut into chapters, or into pieces of some length. Other files hold a row a chapter, with what the data sets
of next-chapter prediction have beside it: plan, summary, characters, synopsis.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_processing.config import StoryOptions, TableSource
from data_processing.errors import DataError
from data_processing.sources.columns import renamed
from data_processing.sources.files import Position, RawRow, read_files, read_whole_text
from data_processing.sources.found import data_type_of
from data_processing.sources.turn import BadRow

# What a row may tell of the story, in the order in which a prompt has it, and its title there.
_PARTS = {
    "high_level_plot_summary": "Plan of the story",
    "prior_plot_summary": "Summary so far",
    "character_sheets": "Characters",
    "story_text": "Previous chapter",
    "next_chapter_synopsis": "Synopsis of the next chapter",
    "next_chapter_header": "Heading of the next chapter",
}
_NEEDED = ("story_text", "next_chapter")
_SENTENCE_ENDS = re.compile(r"(?<=[.!?])[\"'\u201d\u2019)]*\s+")


class Chapter(NamedTuple):
    """A heading, empty where there is none, and the text below it."""

    heading: str
    text: str


def read_stories(files: Sequence[Path], source: TableSource, position: Position, left_out: Counter[str]) -> Iterator[RawRow]:
    """The rows of chapters that are taken, each with `messages`, an id, its story and its number; `left_out` counts the others by reason.

    Raises `DataError` for a text without a heading of a chapter, and what `read_files` does.
    """
    options = StoryOptions.model_validate(source.options)
    for file in files:
        if data_type_of(file) == "txt":
            rows: Iterator[RawRow] = _rows_of_novel(file, options, position, left_out)
        else:
            rows = (_renamed(raw, source.columns) for raw in read_files([file], position))
        for raw in rows:
            if raw.values is None or any(not isinstance(raw.values.get(name), str) for name in _NEEDED):
                problem = raw.problem or f"has no {' and '.join(_NEEDED)}, which a row of kind 'stories' needs"
                yield raw._replace(values=None, problem=problem)
                continue
            if not _is_number(index := raw.values.get("chapter_index")):
                yield raw._replace(values=None, problem=f"'chapter_index' is {index!r}, expected a whole number")
                continue
            prompt = story_prompt(raw.values)
            if reason := reason_to_leave(raw.values, prompt, options):
                left_out[reason] += 1
                continue
            yield raw._replace(values=_row(raw.values, prompt))


def words(text: str) -> int:
    """How many words a text has: pieces between single spaces."""
    return len(text.split(" "))


def reason_to_leave(values: Mapping[str, Any], prompt: str, options: StoryOptions) -> str | None:
    """Why a chapter is not taken; None for one that is."""
    index = values.get("chapter_index")
    return left_out_for(
        words(str(values["next_chapter"])),
        words(str(values["story_text"])),
        words(prompt),
        options.first_chapter if index is None else int(index),
        options,
    )


def left_out_for(next_words: int, previous_words: int, prompt_words: int, number: int, options: StoryOptions) -> str | None:
    """The same from how many words the next chapter, what is shown of the story, and the prompt have, and the chapter's number."""
    if number < options.first_chapter:
        return f"before chapter {options.first_chapter}"
    if not options.longer_than_words < next_words < options.most_words:
        return f"not between {options.longer_than_words} and {options.most_words} words"
    if previous_words >= options.most_words:
        return f"{options.most_words} words or more before it"
    return f"{options.most_prompt_words} words or more in the prompt" if prompt_words >= options.most_prompt_words else None


def story_prompt(values: Mapping[str, Any]) -> str:
    """What a row tells of the story, part after part, each under a title."""
    told = {title: _told(values.get(name)) for name, title in _PARTS.items()}
    parts = {title: text for title, text in told.items() if text}
    listed = ", ".join(title[0].lower() + title[1:] for title in parts)
    return "\n\n".join([f"Of a story you are given: {listed}.", *(f"### {title} ###\n{text}" for title, text in parts.items())])


def chapters(text: str, heading: str) -> list[Chapter]:
    """A text cut where a line is a heading. What stands before the first, and headings with nothing below them, are no chapters."""
    found = list(re.finditer(heading, text, re.MULTILINE))
    ends = [place.start() for place in found[1:]] + [len(text)] * bool(found)
    cut = [Chapter(place[0].strip(), text[place.end() : end].strip()) for place, end in zip(found, ends, strict=True)]
    return [chapter for chapter in cut if chapter.text]


def pieces(text: str, least_words: int) -> list[str]:
    """A text cut at ends of sentences, each piece as soon as it has so many words; what is left over is no piece."""
    found, start, count, last = [], 0, 0, 0
    for end in [place.end() for place in _SENTENCE_ENDS.finditer(text)] + [len(text)]:
        count += len(text[last:end].split())
        last = end
        if count >= least_words:
            found.append(text[start:end].strip())
            start, count = end, 0
    return found


def _renamed(raw: RawRow, columns: Mapping[str, str]) -> RawRow:
    """The row under the names that its columns are given."""
    if raw.values is None:
        return raw
    try:
        return raw._replace(values=renamed(raw.values, columns))
    except BadRow as error:
        return raw._replace(values=None, problem=str(error))


def _rows_of_novel(file: Path, options: StoryOptions, position: Position, left_out: Counter[str]) -> Iterator[RawRow]:
    """A row for each chapter but the first and last ones, which are counted."""
    text = read_whole_text(file, position)
    cut = chapters(text, options.heading)
    if not cut and not options.pieces_of_words:
        raise DataError(
            f"{file.name} has no line that is the heading of a chapter ({options.heading}): give the expression of its headings in "
            "options.heading, or cut it by length with options.pieces_of_words"
        )
    if options.pieces_of_words:
        whole = "\n\n".join(chapter.text for chapter in cut) or text
        cut = [Chapter("", piece) for piece in pieces(whole, options.pieces_of_words)]
    for number, chapter in enumerate(cut):
        if number < options.previous:
            left_out[f"fewer than {options.previous} before it"] += 1
            continue
        if number >= len(cut) - options.left_at_the_end:
            left_out[f"of the last {options.left_at_the_end} of a text"] += 1
            continue
        before = cut[number - options.previous : number]
        values = {
            "story_id": file.name.partition(".")[0],
            "chapter_index": number,
            "story_text": "\n\n".join("\n\n".join(part for part in each if part) for each in before),
            "next_chapter_header": chapter.heading,
            "next_chapter": chapter.text,
        }
        yield RawRow(f"{file.name} {'piece' if options.pieces_of_words else 'chapter'}", number, values)


def _row(values: Mapping[str, Any], prompt: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": values["next_chapter"]}]
    aside = {name: value for name, value in values.items() if name not in _PARTS and name != "next_chapter"}
    if values.get("story_id") is not None and values.get("chapter_index") is not None:
        aside.setdefault("id", f"{values['story_id']}:{values['chapter_index']}")
    return {**aside, "messages": messages}


def _is_number(index: Any) -> bool:
    return index is None or (isinstance(index, (int, float)) and math.isfinite(index) and index == int(index))


def _told(value: Any) -> str:
    if isinstance(value, Mapping):
        return "\n\n".join(f"{name}: {text}" for name, text in value.items() if text)
    return "" if value is None else str(value).strip()
