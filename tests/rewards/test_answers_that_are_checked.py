"""Answers against labels: to the letter, as a number, as an option."""

import math
import time
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_processing.errors import ConfigError
from rlhf_core.rewards.base import Scores
from rlhf_core.rewards.verifiers.quantities import MOST_CHARACTERS, quantities, unit_named
from tests.rewards.verified import response, scorer, scores, worth

KINDS = ["exact", "numeric", "choice"]
EUROPE = {"choices": ["Paris", "London", "A town in Bern"]}


@pytest.mark.parametrize("kind", [*KINDS, "math"])
@pytest.mark.parametrize("label", [None, " "])
def test_a_prompt_without_a_label_is_named(kind: str, label: str | None) -> None:
    with pytest.raises(ConfigError, match=rf"kind '{kind}' needs the right answer as label .* prompt p0 has none"):
        worth(kind, "", label)


@pytest.mark.parametrize("kind", KINDS)
def test_a_response_without_an_answer_is_worth_nothing_and_counted(kind: str) -> None:
    found = Scores.of(
        scorer(kind).score(
            [response("<think>A 1</think>", "1" if kind != "choice" else "A"), response("", "B" if kind == "choice" else "1")]
        )
    )
    assert found.rewards == [0.0, 0.0]
    assert found.metrics == {"answered": [0.0, 0.0]}


@pytest.mark.parametrize(
    ("text", "label", "expected"),
    [
        ("Paris", "Paris", 1.0),
        (" Paris \n", "Paris", 1.0),
        ("Answer: **New  York**.", "New York", 1.0),
        ("The answer is U.S.", "U.S.", 1.0),
        ("cafe\u0301", "caf\u00e9", 1.0),
        ("paris", "Paris", 0.0),
        ("It is Paris", "Paris", 0.0),
        ("<think>Paris</think>Rome", "Paris", 0.0),
    ],
)
def test_exact_folds_white_space_and_unicode_and_nothing_else(text: str, label: str, expected: float) -> None:
    assert worth("exact", text, label) == expected


def test_exact_may_take_all_cases_for_one() -> None:
    assert worth("exact", "STRASSE", "Straße", ignore_case=True) == 1.0


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("42", "42.0"),
        ("1,234,567", "1234567"),
        (r"1{,}234", "1234"),
        ("$1,200", "1200"),
        ("**42**", "42"),
        ("1.5e3", "1500"),
        (r"1.5 \times 10^{3}", "1500"),
        ("3 × 10⁵", "300000"),
        ("10^6", "1000000"),
        (r"\frac{3}{4}", "0.75"),
        (r"-2\frac12", "-2.5"),
        ("1 3/4", "1.75"),
        ("x = 42", "42"),
        ("40 + 2 = 42", "42"),
        ("42 apples", "42"),
        ("50%", "0.5"),
        ("50", "50%"),
        (r"50\%", "50 percent"),
        ("0.5", "50%"),
        ("−5", "-5"),
        ("12 km", "12000 m"),
        (r"12\,\text{km}", "12000 m"),
        ("**12** km", "12000 m"),
        ("36 km/h", "10 m/s"),
        ("1 m^2", "10000 cm²"),
        ("20 °C", "68 °F"),
        (r"180^\circ", "180 degrees"),
        ("2 Hours", "120 min"),
        ("12", "12 km"),
        ("5", "he has 2 and 3 more\n#### 5"),
    ],
)
def test_a_number_is_the_same_however_it_is_written(answer: str, label: str) -> None:
    assert worth("numeric", f"Answer: {answer}", label) == 1.0


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("41", "42"),
        ("-42", "42"),
        ("9**9**9", "9"),
        ("40 + 2", "40"),
        ("40+2", "2"),
        ("2024-01-05", "5"),
        ("1/0", "1"),
        ("12 km", "12 m"),
        ("12 km", "12 kg"),
        ("12 %", "12 km"),
        ("0.42", "42"),
        ("no number", "42"),
        ("1e999999", "1"),
        ("1" * 100_000, "1"),
    ],
)
def test_what_is_another_number_or_none_is_worth_nothing(answer: str, label: str) -> None:
    assert worth("numeric", f"Answer: {answer}", label) == 0.0


def test_without_a_mark_the_last_number_counts() -> None:
    assert worth("numeric", "3 boxes of 4 are 12 pencils in all.", "12") == 1.0
    for sum_ in ("3 + 4", "3 +4", "3 * 4", r"3 \times 4", "(3) - 4"):
        assert worth("numeric", f"that leaves 7. {sum_}", "4") == 0.0
    assert scores("numeric", "no idea", "12").metrics["answered"] == [0.0]


@pytest.mark.parametrize(
    ("answer", "fields", "expected"),
    [
        ("101", {}, 0.0),
        ("101", {"relative_tolerance": 0.01}, 1.0),
        ("101.01", {"relative_tolerance": 0.01}, 0.0),
        ("100.1", {"absolute_tolerance": 0.1}, 1.0),
        ("100.11", {"absolute_tolerance": 0.1}, 0.0),
        ("100", {"unit_may_be_missing": False}, 0.0),
        ("0.1 km", {"unit_may_be_missing": False}, 1.0),
        ("100 km", {"units": False}, 1.0),
    ],
)
def test_tolerances_and_units_are_settings(answer: str, fields: dict[str, Any], expected: float) -> None:
    assert worth("numeric", f"Answer: {answer}", "100 m", **fields) == expected


@pytest.mark.parametrize("label", ["no number", "3 or 4", "9**9", "1e999999", "1e5000"])
def test_a_label_that_is_no_number_fails_on_its_responses_and_says_why(label: str) -> None:
    found = scores("numeric", "Answer: 3", label)
    assert math.isnan(found.rewards[0] or 0.0)
    assert "is not one number" in (found.failures[0] or "")


def test_only_so_much_of_a_text_is_read() -> None:
    assert quantities(" " * MOST_CHARACTERS + "5") == []
    assert worth("numeric", "7 " + " " * MOST_CHARACTERS + "5", "5") == 1.0


@given(st.fractions(max_denominator=10**6).filter(lambda x: abs(x) < 10**12))
def test_numbers_are_read_exactly(value: Fraction) -> None:
    texts = [str(value), f"{value.numerator:,}/{value.denominator}"]
    assert {found.value for text in texts for found in quantities(text) if found} == {value}


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**15), max_value=10**15, places=4), st.integers(-30, 30))
def test_thousands_and_exponents_change_no_number(number: Any, exponent: int) -> None:
    wanted = Fraction(number) * Fraction(10) ** exponent
    for text in (f"{number}e{exponent}", f"{number:,} × 10^{exponent}", rf"{number} \times 10^{{{exponent}}}"):
        [found] = quantities(text)
        assert found is not None and found.value == wanted


@given(st.text(max_size=60), st.sampled_from(["**", "^", "*", "e", " ", "/", ""]), st.integers(0, 10**9))
def test_no_text_breaks_the_reading_of_numbers(text: str, between: str, number: int) -> None:
    for found in quantities(f"{text}{number}{between}{number}{text}"):
        assert found is None or unit_named(found.unit) is None or abs(found.value) >= 0


@pytest.mark.parametrize(
    "text",
    ["1" * 200_000, "1," * 50_000, "1 " * 50_000, "1" + " " * 100_000, "9**" * 30_000, r"\frac{1}" * 20_000, "5 km/" * 9_000],
)
def test_no_text_takes_long_to_read_numbers_of(text: str) -> None:
    started = time.process_time()
    worth("numeric", text, "1")
    worth("numeric", f"Answer: {text}", "1")
    assert time.process_time() - started < 3.0


@pytest.mark.parametrize(
    ("text", "label", "expected"),
    [
        ("B", "B", 1.0),
        ("Answer: (B)", "B", 1.0),
        ("The answer is B because it is", "B", 1.0),
        ("The answer is option B.", "B", 1.0),
        (r"\boxed{\text{B}}", "B", 1.0),
        ("**B.** London", "B", 1.0),
        ("b", "B", 1.0),
        ("so (A) is wrong and it must be (B).", "B", 1.0),
        ("Answer: London", "B", 1.0),
        ("Answer: london.", "London", 1.0),
        ("Answer: B", "1", 1.0),
        ("Answer: A town in Bern", "C", 1.0),
        ("Answer: A town in Bern", "A", 0.0),
        ("Answer: A village", "A", 0.0),
        ("Answer: D", "B", 0.0),
        ("Answer: Berlin", "B", 0.0),
        ("Answer: A", "B", 0.0),
    ],
)
def test_an_option_is_named_by_its_letter_or_its_text(text: str, label: str, expected: float) -> None:
    assert worth("choice", text, label, EUROPE) == expected


def test_options_may_come_in_the_forms_that_data_sets_have() -> None:
    for column in ({"text": ["x", "y"], "label": ["A", "B"]}, {"A": "x", "B": "y"}, ["x", "y"]):
        assert worth("choice", "Answer: y", "B", {"options": column}, choices="options") == 1.0
    assert worth("choice", "Answer: B", "B") == 1.0
    with pytest.raises(ConfigError, match=r"column 'choices' of prompt p0 is 'x, y', and must be a list"):
        worth("choice", "B", "B", {"choices": "x, y"})


@pytest.mark.parametrize("label", ["D", "7", "Berlin"])
def test_a_label_that_names_no_option_fails_on_its_responses(label: str) -> None:
    found = scores("choice", "A", label, EUROPE)
    assert math.isnan(found.rewards[0] or 0.0)
    assert "names none of 3 options" in (found.failures[0] or "")
