"""What IFEval's instructions ask of a response (arXiv 2311.07911): a function and a line of the table for each id.

A function takes the response and, by the names that the data set has for them, the instruction's arguments. Where the data set's own
checker takes a library with data of its own (sentences, words in capitals) there is a rule on punctuation here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from rlhf_core.rewards.verifiers.json_schema import is_json

Relation = Literal["less than", "at least"]
_YES_NO_MAYBE = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_SENTENCE_END = re.compile(r"[.!?]+[\"'”’)\]*]*(?=\s|$)")
_LAST_WORD = re.compile(r"\S{0,12}$")
_ABBREVIATIONS = frozenset({"mr.", "mrs.", "ms.", "dr.", "prof.", "st.", "e.g.", "i.e.", "vs.", "no.", "approx."})
_WORD = re.compile(r"\w+")
_NAME = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


def _compared(count: int, relation: Relation, threshold: int) -> bool:
    if relation not in ("less than", "at least"):
        raise ValueError(f"relation {relation!r} is neither 'less than' nor 'at least'")
    return count < threshold if relation == "less than" else count >= threshold


def _has_all(text: str, *, keywords: Sequence[str]) -> bool:
    return all(keyword.lower() in text.lower() for keyword in keywords)


def _has_often(text: str, *, keyword: str, frequency: int, relation: Relation) -> bool:
    return _compared(text.lower().count(keyword.strip().lower()), relation, frequency)


def _has_none(text: str, *, forbidden_words: Sequence[str]) -> bool:
    return not any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) for word in forbidden_words)


def _has_letter(text: str, *, letter: str, let_frequency: int, let_relation: Relation) -> bool:
    return _compared(text.lower().count(letter.lower()), let_relation, let_frequency)


def _sentences(text: str, *, num_sentences: int, relation: Relation) -> bool:
    return _compared(count_sentences(text), relation, num_sentences)


def count_sentences(text: str) -> int:
    """Sentences by the marks that end them, but for common abbreviations; what stands behind the last mark is one more."""
    ends = [m.end() for m in _SENTENCE_END.finditer(text) if not _is_abbreviation(text[max(m.start() - 12, 0) : m.end()])]
    return len(ends) + bool(text[ends[-1] if ends else 0 :].strip())


def _is_abbreviation(text: str) -> bool:
    last = _LAST_WORD.findall(text)[0].lower().lstrip("(\"'")
    return last in _ABBREVIATIONS


def _words(text: str, *, num_words: int, relation: Relation) -> bool:
    return _compared(len(_WORD.findall(text)), relation, num_words)


def _paragraphs(text: str, *, num_paragraphs: int) -> bool:
    return len(_between(text, "***")) == num_paragraphs


def _first_word(text: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Paragraphs are what blank lines divide; the word ends where punctuation starts."""
    paragraphs = [part for part in text.split("\n\n") if part.strip()]
    if len(paragraphs) != num_paragraphs or not 1 <= nth_paragraph <= num_paragraphs:
        return False
    word = paragraphs[nth_paragraph - 1].split()[0].lstrip("'\"")
    return re.split(r"[.,?!'\"]", word)[0].lower() == first_word.lower()


def _between(text: str, divider: str) -> list[str]:
    """The parts of a text between dividers; none at all where one amid the others is empty."""
    parts = [part.strip() for part in text.split(divider)]
    parts = parts[not parts[0] : len(parts) - (len(parts) > 1 and not parts[-1])]
    return parts if all(parts) else []


def _placeholders(text: str, *, num_placeholders: int) -> bool:
    return len(re.findall(r"\[[^\[\]\n]*\]", text)) >= num_placeholders


def _postscript(text: str, *, postscript_marker: str) -> bool:
    """Between its points there may be a space."""
    marker = r"\.\s?".join(map(re.escape, postscript_marker.strip().split(".")))
    return re.search(marker, text, re.IGNORECASE) is not None


def _bullets(text: str, *, num_bullets: int) -> bool:
    lines = [line.lstrip() for line in text.splitlines()]
    return sum(line.startswith("-") or (line[:1] == "*" and line[1:2] not in ("", "*")) for line in lines) == num_bullets


def _yes_no_maybe(text: str) -> bool:
    return any(answer in text for answer in _YES_NO_MAYBE)


def _highlights(text: str, *, num_highlights: int) -> bool:
    single = re.findall(r"\*([^\n*]*)\*", text)
    double = re.findall(r"\*\*([^\n*]*)\*\*", text)
    return sum(bool(part.strip()) for part in (*single, *double)) >= num_highlights


def _sections(text: str, *, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"{re.escape(section_spliter.strip())}\s?\d+", text)) >= num_sections


def _json(text: str) -> bool:
    inside = text.strip().removesuffix("```")
    fence = re.match(r"```(?:json)?", inside, re.IGNORECASE)
    return is_json(inside[fence.end() :] if fence else inside)


def _title(text: str) -> bool:
    return any(title.strip() for title in re.findall(r"<<([^\n<>]+)>>", text))


def _two_responses(text: str) -> bool:
    parts = _between(text, "******")
    return len(parts) == 2 and parts[0] != parts[1]


def _repeats(text: str, *, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def _ends(text: str, *, end_phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def _quoted(text: str) -> bool:
    said = text.strip()
    return len(said) > 1 and said[0] == said[-1] == '"'


def _capital_words(text: str, *, capital_frequency: int, capital_relation: Relation) -> bool:
    return _compared(sum(word.isupper() for word in _NAME.findall(text)), capital_relation, capital_frequency)


def _no_comma(text: str) -> bool:
    return "," not in text


CONSTRAINTS: Mapping[str, Callable[..., bool]] = {
    "keywords:existence": _has_all,
    "keywords:frequency": _has_often,
    "keywords:forbidden_words": _has_none,
    "keywords:letter_frequency": _has_letter,
    "length_constraints:number_sentences": _sentences,
    "length_constraints:number_words": _words,
    "length_constraints:number_paragraphs": _paragraphs,
    "length_constraints:nth_paragraph_first_word": _first_word,
    "detectable_content:number_placeholders": _placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:constrained_response": _yes_no_maybe,
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:json_format": _json,
    "detectable_format:title": _title,
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": _repeats,
    "startend:end_checker": _ends,
    "startend:quotation": _quoted,
    "change_case:capital_word_frequency": _capital_words,
    "change_case:english_capital": str.isupper,
    "change_case:english_lowercase": str.islower,
    "punctuation:no_comma": _no_comma,
}
