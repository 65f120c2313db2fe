"""Faults in words for procedures, and the arithmetic behind the charts."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_processing.procedures.corruptions import CORRUPTIONS, corrupt
from data_processing.procedures.faults import procedure_faults
from data_processing.procedures.optimal import optimal_procedure, render
from data_processing.procedures.policy import draw_policy
from evaluation.report.charts import IntervalRow, interval_chart, line_chart, nice_ticks, number
from evaluation.report.details import duration
from evaluation.report.tables import shown
from evaluation.scores import Measure

finite = st.floats(-1e6, 1e6, allow_nan=False)


@pytest.mark.parametrize("name", list(CORRUPTIONS))
def test_every_corruption_shows_as_a_fault_and_the_optimum_has_none(name: str) -> None:
    rng = random.Random(name)
    found = 0
    for _ in range(60):
        policy = draw_policy(rng, 2)
        procedure = optimal_procedure(policy)
        assert procedure_faults(policy.label(), render(procedure)) == ()
        candidate = corrupt(name, procedure, policy, rng)
        if candidate is not None:
            found += 1
            assert procedure_faults(policy.label(), render(candidate[0])), render(candidate[0])
    assert found > 5


def test_faults_name_the_step_and_what_is_wrong_with_it() -> None:
    label = '{"category":"kettle","rules":[{"when":["oversized"],"outcome":"RESTRICT"}],"default":"APPROVE"}'
    step = "A. The product is oversized? If YES, RESTRICT. If NO, go to Step F."
    assert procedure_faults(label, step)[0] == "step A goes to step F, which is missing"
    invented = "A. The product glows? If YES, RESTRICT. If NO, APPROVE."
    assert procedure_faults(label, invented) == (
        "step A asks what the policy does not mention: “glows”",
        "50% of the cases decided wrongly or never",
    )
    assert procedure_faults(label, "\n\nSure!\n" + step) == ("line 3 is not a step: “Sure!”",)
    assert procedure_faults(label, " \n") == ("the answer is empty",)
    twice = step.replace("go to Step F", "APPROVE")
    assert procedure_faults(label, f"{twice}\n{twice}")[0] == "step A comes twice"


@given(st.text() | st.text(alphabet="AB. Theproduct?\nIfYESNO,goStep"))
def test_any_text_gets_faults_without_an_error(text: str) -> None:
    label = draw_policy(random.Random(0), 2).label()
    assert procedure_faults(label, text)


@given(finite, finite)
def test_ticks_are_few_round_and_reach_both_ends(a: float, b: float) -> None:
    low, high = sorted((a, b))
    ticks = nice_ticks(low, high)
    assert 2 <= len(ticks) <= 8
    assert ticks == sorted(set(ticks))
    slack = 1e-6 * max(1.0, abs(low), abs(high))
    assert ticks[0] <= low + slack
    assert ticks[-1] >= high - slack


@given(st.lists(st.tuples(finite, finite, finite), min_size=1, max_size=5))
def test_interval_charts_stay_inside_their_frame(rows: list[tuple[float, float, float]]) -> None:
    drawn = [IntervalRow("m", *sorted(r)[1:2], sorted(r)[0], sorted(r)[2], "t", "red") for r in rows]  # mean, low, high
    places = [
        float(part.split('%"')[0]) for part in interval_chart(drawn, "t", zero_line=True).split('x="')[1:] if "%" in part[:12]
    ]
    assert places
    assert all(0 <= place <= 100 for place in places)


@given(st.lists(finite, min_size=2, max_size=30))
def test_line_charts_stay_inside_their_frame(values: list[float]) -> None:
    svg = line_chart(list(range(len(values))), values, "t", "red")
    points = svg.split('<polyline points="')[1].split('"')[0].split()
    assert len(points) == len(values)
    assert all(0 <= float(c) <= 100 for point in points for c in point.split(","))


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.12345, "0.123"), (12.3456, "12.3"), (12345.6, "12,346"), (4e-5, "4.0e-05"), (-0.5, "-0.5")]
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_differences_bear_their_sign_and_a_rounded_zero_bears_none() -> None:
    score = Measure("s", "S")
    assert shown(0.114, score, signed=True) == "+0.11"
    assert shown(-0.114, score, signed=True) == "−0.11"
    assert shown(-0.001, score) == "0.00"
    assert shown(1234.5, Measure("l", "L", digits=0)) == "1,234"


@pytest.mark.parametrize(("seconds", "text"), [(4.21, "4.2 s"), (200, "3 min 20 s"), (3900, "1 h 05 min"), (59.99, "60.0 s")])
def test_durations_read_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text
