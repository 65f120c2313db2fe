"""The form of a response: a pattern, JSON under a schema, its length, and constraints in the form of IFEval."""

import json
import math
import threading
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from data_processing.errors import ConfigError
from rlhf_core.rewards.base import Scores
from rlhf_core.rewards.verifiers.constraints import CONSTRAINTS, count_sentences
from tests.rewards.verified import response, scorer, scores, settings, worth

SCHEMA = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
IDS, ARGUMENTS = "instruction_id_list", "kwargs"


@pytest.mark.parametrize(
    ("pattern", "whole", "expected"),
    [("<think>.*</think>", False, 1.0), ("(?s)<think>.*</think>.*", True, 1.0), ("b", True, 0.0), ("z", False, 0.0)],
)
def test_a_pattern_is_found_in_the_response_or_is_all_of_it(pattern: str, whole: bool, expected: float) -> None:
    assert worth("regex", " <think>a</think>\nb ", pattern=pattern, whole=whole) == expected


def test_a_pattern_that_backtracks_is_given_up_in_any_thread() -> None:
    checked, found = scorer("regex", pattern=r"(a|aa)+$", limit_s=0.1), list[Scores]()
    thread = threading.Thread(target=lambda: found.append(checked.score([response("a" * 60 + "b"), response("aa")])))
    started = time.monotonic()
    thread.start()
    thread.join(20.0)
    assert time.monotonic() - started < 10.0
    assert found[0].rewards == [0.0, 1.0]
    assert found[0].metrics["timed_out"] == [1.0, 0.0]


def test_what_is_no_pattern_is_refused() -> None:
    with pytest.raises(ValidationError, match="no regular expression"):
        settings("regex", pattern="(")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"age": 3}', 1.0),
        ('<think>{"age": "x"}</think>{"age": 3}', 1.0),
        ('Here:\n```json\n{"age": "x"}\n```\nbetter:\n```\n{"age": 3}\n```\n', 1.0),
        ('```json\n{"age": 3}\n```\nbut\n```\n{"age": "x"}\n```', 0.0),
        ('{"age": "x"}', 0.0),
        ("{}", 0.0),
        ('{"age": 3', 0.0),
        ('Here: {"age": 3}', 0.0),
        ("NaN", 0.0),
        ("[" * 100_000, 0.0),
        ("1" * 5_000, 0.0),
    ],
)
def test_json_is_the_response_or_its_last_block_and_valid(text: str, expected: float) -> None:
    assert worth("json_schema", text, json_schema=SCHEMA) == expected


def test_a_schema_may_be_a_rows_own_and_rows_without_are_for_other_sources() -> None:
    for own in (SCHEMA, json.dumps(SCHEMA)):
        assert worth("json_schema", '{"age": 3}', columns={"form": own}, column="form") == 1.0
        assert worth("json_schema", "{}", columns={"form": own}, column="form") == 0.0
    assert worth("json_schema", "{}") is None


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"type": "nothing"}, "is no JSON schema"),
        ({"$ref": "https://example.com/schema.json"}, "refers to 'https://example.com/schema.json', .* not fetched"),
    ],
)
def test_what_is_no_schema_is_refused_and_none_is_fetched(schema: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        worth("json_schema", "{}", json_schema=schema)
    with pytest.raises(ConfigError, match=f"column 'json_schema' of prompt p0 {why}"):
        worth("json_schema", "{}", columns={"json_schema": schema})


@given(st.integers(0, 100), st.integers(0, 100), st.integers(0, 50), st.integers(0, 200))
def test_length_is_worth_1_between_its_bounds_and_falls_in_a_line_outside(low: int, more: int, buffer: int, tokens: int) -> None:
    high = low + more + 1
    checked = scorer("length", min_tokens=low, max_tokens=high, buffer_tokens=buffer)
    [value] = checked.score([response("", tokens=tokens)])
    outside = max(low - tokens, tokens - high, 0)
    assert value == (1.0 if not outside else pytest.approx(max(0.0, 1 - outside / buffer)) if buffer else 0.0)


def test_length_takes_its_bounds_in_order_only() -> None:
    with pytest.raises(ValidationError, match="min_tokens=5 is above max_tokens=4"):
        settings("length", min_tokens=5, max_tokens=4)


MANY, FEW = {"relation": "at least"}, {"relation": "less than"}
# By id: arguments, a response that keeps it, and one that does not.
KEPT_AND_NOT: list[tuple[str, dict[str, Any], str, str]] = [
    ("keywords:existence", {"keywords": ["Sun", "moon"]}, "sunny MOON", "sunny"),
    ("keywords:frequency", {"keyword": "sun", "frequency": 2, **MANY}, "Sun sun", "sun"),
    ("keywords:frequency", {"keyword": "sun", "frequency": 2, **FEW}, "sun", "sun sun"),
    ("keywords:forbidden_words", {"forbidden_words": ["sun"]}, "sunny", "the Sun."),
    ("keywords:forbidden_words", {"forbidden_words": ["c++", "a.b"]}, "axb, cc", "in C++ it is"),
    ("keywords:letter_frequency", {"letter": "A", "let_frequency": 2, "let_relation": "at least"}, "aA", "a"),
    ("length_constraints:number_sentences", {"num_sentences": 2, **MANY}, "Mr. A came. B left", "Mr. A came, e.g. B."),
    ("length_constraints:number_sentences", {"num_sentences": 2, **FEW}, "It costs 3.5 in all.", "One! Two?"),
    ("length_constraints:number_words", {"num_words": 3, **MANY}, "one, two three", "one two"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 3}, "a\n***\nb\n***\nc\n***", "a\n***\n***\nb"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Then"},
        "a\n\n\n\n'then, b",
        "then\n\nb",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name] and [address]", "[name]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye\nP. S. more", "Bye\nPS more"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "p.p.s. more", "P.S. more"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n  - b\n**c**", "* a"),
    ("detectable_format:constrained_response", {}, "My answer is no. ", "No."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and **b**", "*a* and ** **"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        "SECTION 1\na\nSECTION 2\nb",
        "SECTION 1",
    ),
    ("detectable_format:json_format", {}, '```JSON\n{"a": 1}\n```', 'Here: {"a": 1}'),
    ("detectable_format:title", {}, "<<A title>>\ntext", "<< >> text"),
    ("combination:two_responses", {}, "a\n******\nb", "a\n******\na"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say hi."}, "say hi. Hi!", "Hi! Say hi."),
    ("startend:end_checker", {"end_phrase": "The end."}, 'Well. "the end."', "The end. Or not"),
    ("startend:quotation", {}, '"all of it"', '"some" of it'),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        "NASA and ESA",
        "NASA and Esa",
    ),
    ("change_case:english_capital", {}, "ALL OF IT.", "ALL of it."),
    ("change_case:english_lowercase", {}, "all of it.", "All of it."),
    ("punctuation:no_comma", {}, "a; b", "a, b"),
]


@pytest.mark.parametrize(("name", "arguments", "kept", "broken"), KEPT_AND_NOT, ids=[case[0] for case in KEPT_AND_NOT])
def test_a_constraint_is_kept_or_not(name: str, arguments: dict[str, Any], kept: str, broken: str) -> None:
    row = {IDS: [name], ARGUMENTS: [{**arguments, "other": None}]}
    assert worth("instructions", f"<think>,</think>{kept}", columns=row) == 1.0
    assert worth("instructions", broken, columns=row) == 0.0


def test_every_constraint_has_a_case() -> None:
    assert {case[0] for case in KEPT_AND_NOT} == CONSTRAINTS.keys()
    assert len(CONSTRAINTS) == 24


def test_a_response_is_worth_the_share_it_keeps_or_all_of_them() -> None:
    row = {IDS: json.dumps(["punctuation:no_comma", "startend:quotation"]), ARGUMENTS: json.dumps([{}, None])}
    assert worth("instructions", "no comma", columns=row) == 0.5
    assert worth("instructions", "no comma", columns=row, all_of_them=True) == 0.0
    assert worth("instructions", '"no comma"', columns=row, all_of_them=True) == 1.0
    assert worth("instructions", " ", columns=row) == 0.0


def test_a_row_with_an_id_that_is_not_checked_is_for_other_sources_and_the_id_is_named() -> None:
    checked = scorer("instructions")
    assert checked.notes == ()
    asked = {IDS: ["punctuation:no_comma", "language:response_language"], ARGUMENTS: [{}, {"language": "de"}]}
    assert checked.score([response("a", **asked), response("a")]).rewards == [None, None]
    [note] = checked.notes
    assert "language:response_language" in note and "no_comma" not in note


@pytest.mark.parametrize(
    "arguments", [{"num_words": 3, "relation": None}, {"num_words": 3, "relation": "about"}, {"num_words": "x", **MANY}]
)
def test_arguments_that_a_constraint_does_not_have_fail_on_the_rows_responses(arguments: dict[str, Any]) -> None:
    found = scores("instructions", "a b", columns={IDS: ["length_constraints:number_words"], ARGUMENTS: [arguments]})
    assert math.isnan(found.rewards[0] or 0.0)
    assert "'length_constraints:number_words' takes ['num_words', 'relation']" in (found.failures[0] or "")
    assert "None" not in (found.failures[0] or "")


@pytest.mark.parametrize("columns", [{IDS: ["a"], ARGUMENTS: [{}, {}]}, {IDS: "no list", ARGUMENTS: [{}]}])
def test_columns_that_do_not_belong_together_name_the_prompt(columns: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="prompt p0 must be lists of the same length"):
        worth("instructions", "a", columns=columns)


@given(st.lists(st.sampled_from(["It rains", "Dr. No left", "We paid 3.50"]), min_size=1), st.sampled_from(".!?"))
def test_sentences_are_counted_by_their_marks(sentences: list[str], mark: str) -> None:
    assert count_sentences(" ".join(sentence + mark for sentence in sentences)) == len(sentences)


@pytest.mark.parametrize("text", ["[" * 50_000, "*" * 50_000, "<<a" * 20_000, "\n" * 100_000, ". " * 50_000, "-\n" * 50_000])
@pytest.mark.parametrize(("name", "arguments"), {case[0]: case[1] for case in KEPT_AND_NOT}.items())
def test_no_text_takes_long_to_check(name: str, arguments: dict[str, Any], text: str) -> None:
    started = time.process_time()
    worth("instructions", f"x{text}x", columns={IDS: [name], ARGUMENTS: [arguments]})
    assert time.process_time() - started < 2.0
