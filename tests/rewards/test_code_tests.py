"""Tests of a row are read as data sets have them, and the program is found in a response."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_core.rewards.code_tests import Asserts, Case, is_same_output, program_of, read_tests

CASES = (Case("1 2\n", "3"), Case("4 5\n", "9"))


def asserts(text: str, entry_point: str = "") -> Asserts:
    read = read_tests(text, entry_point)
    assert isinstance(read, Asserts)
    return read


@pytest.mark.parametrize(
    "value",
    [
        [{"input": "1 2\n", "output": "3"}, {"input": "4 5\n", "output": "9"}],
        {"inputs": ["1 2\n", "4 5\n"], "outputs": ["3", "9"]},
        {"inputs": ["1 2\n", "4 5\n"], "outputs": [["3"], ["9"]], "fn_name": None},
    ],
)
def test_inputs_and_outputs_are_read_in_each_of_their_forms(value: object) -> None:
    assert read_tests(json.dumps(value)) == CASES


def test_only_the_first_cases_are_kept_where_there_is_a_most() -> None:
    assert read_tests(json.dumps({"inputs": ["1 2\n", "4 5\n"], "outputs": ["3", "9"]}), "", 1) == CASES[:1]


def test_a_list_of_asserts_is_one_piece_of_code() -> None:
    assert asserts('["assert f(1) == 2", "assert f(2) == 3"]').count == 2


def test_an_assert_in_a_try_stays_what_it_is() -> None:
    source = "try:\n    f(-1)\n    assert False\nexcept ValueError:\n    pass"
    assert asserts(source) == Asserts(source, 0)


@pytest.mark.parametrize(
    ("source", "started"),
    [
        ("def check(candidate):\n    assert candidate(1) == 2", "check(double)"),
        ("def test_one():\n    assert f(1)", "test_one()"),
        ("import unittest\nclass Tests(unittest.TestCase):\n    def test_one(self):\n        pass", "unittest.main()"),
    ],
)
def test_tests_that_are_only_defined_are_started(source: str, started: str) -> None:
    assert started in asserts(source, "double").source.split("\n", 2)[-1]


def test_tests_that_start_themselves_are_not_started_again() -> None:
    assert asserts("def test_one():\n    assert f(1)\ntest_one()").source.count("test_one()") == 2
    assert asserts("import unittest\nclass T(unittest.TestCase): pass\nunittest.main()").source.count("main()") == 1


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("def f(:", "neither JSON nor Python"),
        ("[]", "no inputs"),
        ("-" * 100_000 + "1", "neither JSON nor Python"),
        ("[" * 100_000, "neither JSON nor Python"),
        ('{"inputs": ["1"], "outputs": []}', "1 inputs and 0 outputs"),
        ('{"a": 1}', "a list of"),
        ('{"inputs": [[1]], "outputs": [1], "fn_name": "f()"}', "'f\\(\\)' is none"),
        ("def check(candidate):\n    assert candidate(1)", "needs the name of the function under test"),
    ],
)
def test_tests_that_cannot_be_read_are_told(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        read_tests(text)


@given(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5), st.booleans())
def test_the_share_is_one_only_for_tests_that_all_held_to_the_end(held: int, broken: int, count: int, ended: bool) -> None:
    share = Asserts("", count).share_passed(b"+" * held + b"-" * broken + b"." * ended)
    assert 0.0 <= share <= 1.0
    assert (share == 1.0) == (ended and not broken and (held > 0 or count == 0))


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("Here:\n```python\nx = 1\n```\nor\n```py\nx = 2\n```\nDone.", "\nx = 2\n"),
        ("```\nx = 1\n```\n```bash\nls\n```", "\nx = 1\n"),
        ("<think>\n```python\nx = 1\n```\n</think>\n```python\nx = 2\n```", "\nx = 2\n"),
        ("<think>\n```python\nx = 1\n```\n</think>\nno program", None),
        ("x = 1", None),
    ],
)
def test_the_program_is_the_last_block_of_python(text: str, program: str | None) -> None:
    assert program_of(text, needs_fence=True) == program
    if program is not None:
        assert program_of(text, needs_fence=False) == program


def test_without_a_block_all_of_the_response_is_the_program() -> None:
    assert program_of("x = 1", needs_fence=False) == "x = 1"


@given(st.lists(st.text("ab1", min_size=1), max_size=5), st.sampled_from([" ", "\n", " \n\n", "\t"]))
def test_white_space_makes_no_other_output(words: list[str], between: str) -> None:
    assert is_same_output(between.join(words) + between, " ".join(words), 0.0)
    assert not is_same_output(" ".join([*words, "c"]), " ".join(words), 0.0)


def test_numbers_may_differ_by_the_tolerance_and_words_may_not() -> None:
    assert is_same_output("1000.1 yes", "1000 yes", 1e-3)
    assert not is_same_output("1000.1 yes", "1000 yes", 1e-6)
    assert not is_same_output("1.0", "1", 0.0)
    assert not is_same_output("yes", "yeS", 1.0)
