"""Several aims in one reward: each on a scale of its own, with weights that change over a run, and its parts kept apart."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from rlhf_core.rewards.base import ScoredResponse
from rlhf_core.rewards.compose import ComposedReward
from rlhf_core.rewards.weighing import Running, Scale, Weighing


class Given:
    """A source that says what it is told to."""

    def __init__(self, name: str, values: Sequence[float | None]) -> None:
        self.name, self.values = name, values

    def score(self, responses: Sequence[ScoredResponse]) -> Sequence[float | None]:
        return self.values


def responses(*prompts: str, step: int = 0) -> list[ScoredResponse]:
    return [ScoredResponse(prompt, [], None, [1], [2], "", step=step) for prompt in prompts]


def test_a_source_on_the_scale_of_its_group_counts_the_same_whatever_its_unit() -> None:
    small, large = Given("small", [0.1, 0.2, 0.5, 0.5]), Given("large", [300.0, 100.0, 0.0, 800.0])
    weighing = Weighing(1.0, normalise="group")
    found = ComposedReward([(small, weighing), (large, weighing)]).score(responses("a", "a", "b", "b"))
    assert found.total == pytest.approx([0.0, 0.0, -1.0, 1.0], abs=1e-4)
    assert found.by_source == {"small": [0.1, 0.2, 0.5, 0.5], "large": [300.0, 100.0, 0.0, 800.0]}, "kept as they are"


def test_what_is_no_number_is_on_no_scale() -> None:
    source = Given("any", [1.0, None, math.nan, 3.0])
    found = ComposedReward([(source, Weighing(1.0, normalise="group"))]).score(responses("a", "a", "a", "a"))
    assert found.total == [pytest.approx(-1.0, abs=1e-4), None, None, pytest.approx(1.0, abs=1e-4)]


def test_a_running_scale_is_that_of_all_responses_so_far() -> None:
    scale, values = Scale(Weighing(1.0, normalise="running")), [1.0, 5.0, 2.0, 8.0]
    scale(values[:2], ["a", "b"])
    found = scale(values[2:], ["a", "b"])
    mean = sum(values) / 4
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / 4)
    assert found == pytest.approx([(value - mean) / deviation for value in values[2:]], abs=1e-4)


def test_a_restored_reward_goes_on_with_its_statistics() -> None:
    source, weighing = Given("any", [1.0, 5.0]), Weighing(1.0, normalise="running")
    whole, first, second = (ComposedReward([(source, weighing)]) for _ in range(3))
    whole.score(responses("a", "b"))
    kept = first.score(responses("a", "b")).running
    second.restore(kept)
    source.values = [9.0, -3.0]
    assert second.score(responses("a", "b")).total == whole.score(responses("a", "b")).total
    assert kept == {"any": (2, 3.0, 8.0)}
    assert Running(*kept["any"]).scaled(5.0) == pytest.approx(1.0, abs=1e-4)


def test_weights_go_in_a_straight_line_from_the_first_round_to_the_last() -> None:
    reward = ComposedReward(
        [(Given("any", [1.0]), Weighing(1.0, final_weight=0.0)), (Given("other", [1.0]), Weighing(2.0))], rounds=5
    )
    found = [reward.score(responses("a", step=step)) for step in range(6)]
    assert [each.total[0] for each in found] == pytest.approx([3.0, 2.75, 2.5, 2.25, 2.0, 2.0])
    assert [each.metrics["any/weight"] for each in found[:2]] == [[1.0], [0.75]]
    assert "other/weight" not in found[0].metrics
