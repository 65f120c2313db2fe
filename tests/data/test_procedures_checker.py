"""The checker: exact on known answers, total on any text, fast."""

import dataclasses
import itertools
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_processing.errors import DataError
from data_processing.procedures.checker import MAX_STEPS, NOT_VALID, check
from data_processing.procedures.policy import Policy, Rule
from data_processing.procedures.vocabulary import ATTRIBUTES

POLICY = Policy(
    category="drone",
    rules=(Rule(when=("magnet",), outcome="RESTRICT"), Rule(when=("abroad",), outcome="ESCALATE")),
    default="APPROVE",
)
LABEL = POLICY.label()
MAGNET, ABROAD, TOXIC = ATTRIBUTES["magnet"], ATTRIBUTES["abroad"], ATTRIBUTES["toxic"]


def line(label: str, clause: str, yes: str, no: str) -> str:
    return f"{label}. The product {clause}? If YES, {yes}. If NO, {no}."


GOOD = [line("A", MAGNET, "RESTRICT", "go to Step B"), line("B", ABROAD, "ESCALATE", "APPROVE")]

targets = st.sampled_from(["APPROVE", "RESTRICT", "ESCALATE", *(f"go to Step {c}" for c in "ABCDE"), "go to Step AA"])
step_lines = st.builds(
    line, st.sampled_from([*"ABCDE", "AA"]), st.sampled_from([MAGNET, ABROAD, TOXIC, "flies"]), targets, targets
)
step_texts = st.lists(step_lines, max_size=8).map("\n".join)


@settings(deadline=None, max_examples=300)
@given(st.text() | step_texts | st.builds("{}\n{}".format, step_texts, st.text(max_size=20)))
def test_any_text_gets_numbers_between_zero_and_one(text: str) -> None:
    scores = check(LABEL, text)
    for value in dataclasses.astuple(scores):
        assert 0.0 <= value <= 1.0
    assert scores.score == pytest.approx(scores.accuracy * scores.soundness * scores.efficiency)
    if scores.valid == 0:
        assert scores == NOT_VALID


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n\t\n",
        "Sure! Here is the procedure.\n" + "\n".join(GOOD),
        "\n".join(GOOD) + "\nThat is all.",
        "\n".join(GOOD).replace("If YES", "if yes"),
        "\n".join(GOOD).replace("RESTRICT", "BAN"),
        " ".join(GOOD),
        GOOD[0].replace("A.", "1."),
        "\x00\ud800\n",
    ],
)
def test_a_line_that_does_not_parse_makes_the_answer_invalid(text: str) -> None:
    assert check(LABEL, text) == NOT_VALID


def test_blank_lines_and_outer_white_space_do_not_matter() -> None:
    assert check(LABEL, "\n\n  " + " \r\n\n ".join(GOOD) + " \n").score == 1.0


def test_steps_may_stand_in_any_order_after_the_first() -> None:
    policy = POLICY.model_copy(update={"rules": (*POLICY.rules, Rule(when=("toxic",), outcome="RESTRICT"))})
    lines = [
        line("A", MAGNET, "RESTRICT", "go to Step B"),
        line("C", TOXIC, "RESTRICT", "APPROVE"),
        line("B", ABROAD, "ESCALATE", "go to Step C"),
    ]
    label = Policy.model_validate(policy.model_dump()).label()
    assert check(label, "\n".join(lines)).score == 1.0


def test_execution_starts_at_the_first_line_whatever_its_label() -> None:
    scores = check(LABEL, "\n".join(reversed(GOOD)))
    assert scores.accuracy == 0.5  # right for products without a magnet only
    assert scores.soundness == 0.5  # the other line is never reached


def test_a_wrong_outcome_costs_the_share_of_products_it_decides() -> None:
    scores = check(LABEL, "\n".join([GOOD[0], GOOD[1].replace("ESCALATE", "APPROVE")]))
    assert (scores.accuracy, scores.soundness, scores.efficiency, scores.score) == (0.75, 1.0, 1.0, 0.75)


def test_a_missing_target_does_not_exist_does_not_end_and_decides_nothing() -> None:
    scores = check(LABEL, "\n".join([GOOD[0], line("B", ABROAD, "ESCALATE", "go to Step C")]))
    assert scores.accuracy == 0.75
    assert scores.soundness == pytest.approx(3 / 4 * 3 / 4)  # 3 of 4 targets exist, 3 of 4 executions end
    assert scores.efficiency == 1.0


def test_a_cycle_ends_and_counts_as_not_ending() -> None:
    scores = check(LABEL, "\n".join([GOOD[0], line("B", ABROAD, "ESCALATE", "go to Step A")]))
    assert scores.accuracy == 0.75
    assert scores.soundness == 0.75
    assert check(LABEL, line("A", MAGNET, "go to Step A", "go to Step A")).score == 0.0


def test_a_step_never_reached_lowers_soundness() -> None:
    scores = check(LABEL, "\n".join([*GOOD, line("C", TOXIC, "APPROVE", "APPROVE")]))
    assert (scores.accuracy, scores.soundness) == (1.0, pytest.approx(2 / 3))


def test_questions_that_change_nothing_lower_efficiency_only() -> None:
    lines = [line("A", MAGNET, "go to Step B", "go to Step B"), GOOD[0].replace("A.", "B.").replace("Step B", "Step C")]
    scores = check(LABEL, "\n".join([*lines, GOOD[1].replace("B.", "C.")]))
    assert (scores.accuracy, scores.soundness) == (1.0, 1.0)
    assert scores.efficiency == pytest.approx(1.5 / 2.5)


def test_fewer_questions_than_needed_do_not_give_more_than_full_efficiency() -> None:
    scores = check(LABEL, line("A", MAGNET, "RESTRICT", "APPROVE"))
    assert (scores.accuracy, scores.efficiency) == (0.75, 1.0)


@pytest.mark.parametrize("clause", [TOXIC, "flies", MAGNET.upper()])
def test_an_attribute_the_policy_does_not_know_is_answered_no(clause: str) -> None:
    scores = check(LABEL, "\n".join([line("A", clause, "ESCALATE", "go to Step B"), GOOD[1]]))
    assert scores.accuracy == 0.5  # the second step decides alone: right for products without a magnet only


def test_of_two_lines_with_one_label_the_first_is_meant() -> None:
    scores = check(LABEL, "\n".join([*GOOD, line("B", ABROAD, "RESTRICT", "RESTRICT")]))
    assert (scores.accuracy, scores.soundness) == (1.0, pytest.approx(2 / 3))


def test_a_label_that_is_no_policy_is_an_error() -> None:
    with pytest.raises(DataError, match="is not a policy"):
        check("APPROVE", "\n".join(GOOD))


def test_huge_answers_are_invalid_and_checked_at_once() -> None:
    many = "\n".join(line("A", MAGNET, "RESTRICT", "go to Step A") for _ in range(50_000))
    long_line = line("A", "a" * 1_000_000, "RESTRICT", "go to Step B")
    started_s = time.process_time()
    assert check(LABEL, many) == NOT_VALID
    assert check(LABEL, "A. The product " + "? If YES, " * 100_000) == NOT_VALID
    assert check(LABEL, long_line).accuracy < 1
    assert time.process_time() - started_s < 10


def test_the_longest_valid_answer_is_checked_quickly() -> None:
    letters = [chr(65 + i // 26) + chr(65 + i % 26) for i in range(MAX_STEPS + 1)]
    chain = [line(a, TOXIC, "APPROVE", f"go to Step {b}") for a, b in itertools.pairwise(letters)]
    started_s = time.process_time()
    scores = check(LABEL, "\n".join(chain))
    assert time.process_time() - started_s < 5
    assert scores.valid == 1
    assert scores.accuracy == 0
