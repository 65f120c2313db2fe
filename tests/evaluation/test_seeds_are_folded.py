"""Models that differ in their seed only: one row of the comparison, with mean and interval over seeds."""

from __future__ import annotations

import numpy as np
import pytest
from test_compare_models import N, evaluation, noisy

from evaluation.config import CompareConfig
from evaluation.seeds import family, folded, interval_over_seeds
from evaluation.verdict import compare

SCORE = ("sampled", "procedures.score")
FAMILIES = {"ppo": ["ppo@seed=1", "ppo@seed=2", "ppo@seed=3"]}
APART = {
    "sft": evaluation(noisy(0.4, 0)),
    **{name: evaluation(noisy(0.5 + 0.1 * i, i + 1), perplexity=2.0 + i) for i, name in enumerate(FAMILIES["ppo"])},
}


def test_seeds_stand_in_one_place_and_a_prompt_stays_one_unit() -> None:
    together = folded(APART, FAMILIES)
    assert list(together) == ["sft", "ppo"]
    values = together["ppo"].values[SCORE[0]][SCORE[1]]
    each = [APART[name].values[SCORE[0]][SCORE[1]].values for name in FAMILIES["ppo"]]
    assert len(values.units) == N
    assert values.values == pytest.approx(np.mean(each, axis=0))
    assert together["sft"] is APART["sft"]


def test_held_out_rows_of_all_seeds_are_averaged_row_by_row() -> None:
    values = folded(APART, FAMILIES)["ppo"].values["held_out"]["perplexity"]
    each = [APART[name].values["held_out"]["perplexity"] for name in FAMILIES["ppo"]]
    assert values.units == each[0].units
    assert np.log(values.values) == pytest.approx(np.mean([np.log(one.values) for one in each], axis=0))


def test_the_interval_is_students_over_seeds() -> None:
    interval = interval_over_seeds([0.4, 0.5, 0.6], 0.95)
    assert (interval.mean, interval.n) == (pytest.approx(0.5), 3)
    # t of 2 degrees of freedom, 97.5 %: 4.303.
    assert (interval.low, interval.high) == pytest.approx((0.5 - 4.303 * 0.1 / 3**0.5, 0.5 + 4.303 * 0.1 / 3**0.5), abs=1e-3)
    assert interval_over_seeds([0.4], 0.95).low == 0.4


def test_the_seed_in_the_middle_stands_for_the_model() -> None:
    found = family({name: APART[name] for name in FAMILIES["ppo"]}, SCORE, 0.95)
    assert found.stands_for == "ppo@seed=2"
    assert found.over_seeds["sampled"]["procedures.score"].n == 3


def test_the_comparison_judges_the_model_and_not_its_seeds() -> None:
    config = CompareConfig(baseline="sft", candidates=["ppo"], seeds=FAMILIES)
    result = compare(folded(APART, FAMILIES), config, seed=0)
    assert result.challenger == "ppo"
    assert set(result.judged) == {"ppo"}
