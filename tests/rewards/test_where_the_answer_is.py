"""One rule says where the answer is in a response."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rlhf_core.rewards.verifiers import patterns
from rlhf_core.rewards.verifiers.answers import bare, marked_answer, nothing, reader, whole, without_thinking
from tests.rewards.verified import settings

# Without what marks an answer, or thinking.
WORDS = st.text(st.characters(codec="utf-8", exclude_characters="<>\\{}#=:", exclude_categories=["C", "Z"]), min_size=1)
MARKS = [
    "<answer>{}</answer>",
    r"\boxed{{{}}}",
    "#### {}",
    "Answer: {}",
    "answer = {}",
    "**Final answer:** {}",
    "The answer is {}",
]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("I think <answer> 4 </answer> is right", "4"),
        ("<answer>3</answer> no, <answer>4</answer>", "4"),
        (r"so \boxed{\frac{1}{2}} it is", r"\frac{1}{2}"),
        (r"\boxed{ \{1, 2\} }", r"\{1, 2\}"),
        (r"{ never closed, \boxed{4}", "4"),
        (r"\boxed{4} and then \boxed{5", "4"),
        ("16 - 3 = 13\n#### 13", "13"),
        ("Answer: Paris, France.", "Paris, France."),
        ("**Answer:** Paris", "Paris"),
        ("The final answer is: Paris. It is large.", "Paris"),
        ("the answer is 3.5 metres! Yes.", "3.5 metres"),
        (r"The answer is \boxed{4}.", "4"),
        ("Answer: 3\nThe answer is 4", "4"),
        ("The answer is not 4", None),
        ("#### ", None),
        (r"\boxed{}", None),
        ("nothing of the kind", None),
    ],
)
def test_the_last_mark_counts_and_of_nested_ones_the_inner(text: str, answer: str | None) -> None:
    assert marked_answer(text) == answer


@given(st.sampled_from(MARKS), st.sampled_from(MARKS), WORDS, WORDS)
def test_whatever_stands_before_the_last_mark_is_not_the_answer(first: str, last: str, wrong: str, right: str) -> None:
    assert marked_answer(f"{first.format(wrong)}\nthen\n{last.format(right)}") == marked_answer(last.format(right))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<think>a</think>b", "b"),
        ("a<think>b</think>c<think>d</think>e", "ace"),
        ("begun in the prompt</think>b", "b"),
        ("a<think>never ended", "a"),
        ("<think>a<think>b</think>c", "c"),
        ("<think>a</think>b</think>c", "c"),
        ("no thinking", "no thinking"),
    ],
)
def test_thinking_is_not_said(text: str, said: str) -> None:
    assert without_thinking(text) == said


@given(WORDS, WORDS)
def test_an_answer_that_is_only_thought_is_none(thought: str, said: str) -> None:
    read = reader("auto", nothing)
    assert read(f"<think>The answer is {thought}</think>{said}") == read(said)


def test_a_pattern_of_ones_own_takes_its_last_match_and_nothing_else() -> None:
    read = reader(r"result=(\d+)", whole)
    assert read("result=1, result=2 <think>result=3</think>") == "2"
    assert read("Answer: 4") is None
    assert reader(r"result=(\d+)?", whole)("result=") is None


@pytest.mark.parametrize(("pattern", "why"), [(r"a(b", "no regular expression"), (r"ab", "0 groups"), (r"(a)(b)", "2 groups")])
def test_a_pattern_that_gives_no_one_answer_is_refused(pattern: str, why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        settings("exact", answer=pattern)


@pytest.mark.parametrize(
    "text", ["<think>" * 20_000, "<answer>" * 20_000, r"\boxed{" * 20_000, "####" * 40_000, "answer is " * 10_000, "{}" * 50_000]
)
def test_no_text_takes_long(text: str) -> None:
    started = time.process_time()
    reader("auto", whole)(text)
    reader(r"((?:a+)+)b", whole)(text)
    assert time.process_time() - started < 2.0


def test_a_pattern_that_backtracks_for_ever_finds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "LIMIT_S", 0.05)
    assert reader(r"^((?:a|aa)+)$", whole)("a" * 60 + "b") is None


@pytest.mark.parametrize(("answer", "left"), [("**Paris.**", "Paris"), ("$x$.", "x"), ('"Yes"', "Yes"), ("U.S.", "U.S")])
def test_typography_around_an_answer_can_be_taken_off(answer: str, left: str) -> None:
    assert bare(answer) == left
