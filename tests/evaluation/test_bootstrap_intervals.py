"""Intervals by resampling: equivariance, closed forms, determinism, and what they refuse. Coverage is simulated in
test_verdicts_hold_in_simulation.py."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_processing.errors import DataError
from evaluation import bootstrap
from evaluation.bootstrap import UNBOUNDED, Bounds, Floats, Interval, Resampling, mean_interval, paired_draws

R = Resampling(resamples=400, confidence=0.95, seed=7)
finite = st.floats(-100, 100, allow_nan=False)
samples = st.lists(finite, min_size=1, max_size=40).map(np.array)


def paired_interval(candidate: Floats, baseline: Floats, resampling: Resampling) -> Interval:
    return paired_draws(candidate, baseline, resampling).interval(resampling.confidence)


def test_higher_confidence_gives_a_wider_interval() -> None:
    values = np.random.default_rng(0).normal(size=50)
    narrow = mean_interval(values, Resampling(resamples=2000, confidence=0.6))
    wide = mean_interval(values, Resampling(resamples=2000, confidence=0.99))
    assert wide.low < narrow.low < narrow.mean < narrow.high < wide.high


def test_paired_interval_is_narrower_than_unpaired_spread_when_units_vary() -> None:
    generator = np.random.default_rng(1)
    difficulty = generator.normal(0, 10, 64)
    ours, theirs = difficulty + 0.5 + generator.normal(0, 0.1, 64), difficulty
    paired = paired_interval(ours, theirs, R)
    assert 0.4 < paired.low < 0.5 < paired.high < 0.6
    assert mean_interval(ours, R).high - mean_interval(ours, R).low > 10 * (paired.high - paired.low)


@given(samples, finite)
def test_a_shift_of_all_values_shifts_the_interval(values: Floats, shift: float) -> None:
    before, after = mean_interval(values, R), mean_interval(values + shift, R)
    for end in ("mean", "low", "high"):
        assert getattr(after, end) == pytest.approx(getattr(before, end) + shift, abs=1e-9)


@given(samples, st.floats(0.01, 50))
def test_a_scale_of_all_values_scales_the_interval(values: Floats, scale: float) -> None:
    before, after = mean_interval(values, R), mean_interval(values * scale, R)
    assert after.low == pytest.approx(before.low * scale, rel=1e-9, abs=1e-7)
    assert after.high == pytest.approx(before.high * scale, rel=1e-9, abs=1e-7)


@given(samples)
def test_mean_is_the_mean_and_lies_in_its_interval_within_the_bounds_of_the_values(values: Floats) -> None:
    for bounds in (UNBOUNDED, Bounds(-100.0, 100.0), Bounds(lowest=-100.0)):
        interval = mean_interval(values, R, bounds=bounds)
        assert interval.mean == pytest.approx(values.mean(), abs=1e-9)
        assert interval.low <= interval.mean <= interval.high
        assert bounds.lowest is None or interval.low >= -100.0
        assert bounds.highest is None or interval.high <= 100.0
        assert interval.n == len(values)


def test_shares_of_nothing_or_all_have_the_interval_of_clopper_and_pearson() -> None:
    many = Resampling(resamples=20000)
    none, every = (mean_interval(np.full(64, share), many, bounds=Bounds(0.0, 1.0)) for share in (0.0, 1.0))
    assert (none.low, every.high) == (0.0, 1.0)
    assert every.low == pytest.approx(0.025 ** (1 / 64), abs=1e-3)
    assert none.high == pytest.approx(1 - 0.025 ** (1 / 64), abs=1e-3)


@pytest.mark.parametrize(("wins", "losses"), [(4, 0), (6, 0), (9, 1), (30, 12)])
def test_wins_and_losses_have_the_p_value_of_the_sign_test(wins: int, losses: int) -> None:
    candidate, baseline = np.repeat([1.0, 0.0, 1.0], [wins, losses, 20]), np.repeat([0.0, 1.0, 1.0], [wins, losses, 20])
    draws = paired_draws(candidate, baseline, Resampling(resamples=20000), bounds=Bounds(0.0, 1.0))
    tosses = wins + losses
    exact = sum(math.comb(tosses, heads) for heads in range(wins, tosses + 1)) / 2**tosses
    assert float(draws.p_above()[0]) == pytest.approx(exact, rel=0.1, abs=1e-3)


@pytest.mark.parametrize("bounds", [UNBOUNDED, Bounds(0.0, 1.0)])
@pytest.mark.parametrize("seed", range(8))
def test_an_interval_leaves_out_zero_exactly_where_the_test_rejects_it(bounds: Bounds, seed: int) -> None:
    g = np.random.default_rng(seed)
    ours, theirs = np.round(g.uniform(0.1, 1.0, (2, 30)), 1)
    draws = paired_draws(ours, theirs, R, bounds=bounds)
    for tail in (0.005, 0.025, 0.1, 0.3):
        assert bool(draws.low(tail)[0] > 0.0) == bool(draws.p_above()[0] <= tail)
        assert bool(draws.high(tail)[0] < 0.0) == bool(draws.p_below()[0] <= tail)


def test_equal_differences_are_sure_only_where_nothing_else_could_have_been() -> None:
    ours, theirs = np.full(40, 0.75), np.full(40, 0.5)
    unlimited = paired_draws(ours, theirs, R).interval(0.95)
    assert (unlimited.low, unlimited.mean, unlimited.high) == (0.25, 0.25, 0.25)
    shares = paired_draws(ours, theirs, R, bounds=Bounds(0.0, 1.0)).interval(0.95)
    assert 0.1 < shares.low < 0.25 < shares.high < 0.35
    same = paired_draws(ours, ours, R, bounds=Bounds(0.0, 1.0)).interval(0.95)
    assert -0.1 < same.low < same.mean == 0.0 < same.high < 0.1


@given(samples)
def test_same_seed_same_interval_and_a_model_against_itself_is_exactly_zero(values: Floats) -> None:
    assert mean_interval(values, R) == mean_interval(values.copy(), R)
    against_itself = paired_interval(values, values, R)
    assert (against_itself.mean, against_itself.low, against_itself.high) == (0.0, 0.0, 0.0)


@given(samples, samples)
def test_paired_difference_changes_sign_when_the_models_swap(a: Floats, b: Floats) -> None:
    n = min(len(a), len(b))
    forward, backward = paired_interval(a[:n], b[:n], R), paired_interval(b[:n], a[:n], R)
    assert forward.mean == pytest.approx(-backward.mean, abs=1e-9)
    assert forward.low == pytest.approx(-backward.high, abs=1e-9)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.floats(0.1, 50), st.integers(1, 300)), min_size=1, max_size=30))
def test_ratio_metrics_are_sums_over_sums(rows: list[tuple[float, int]]) -> None:
    values, weights = np.array([r[0] for r in rows]), np.array([float(r[1]) for r in rows])
    assert mean_interval(values, R, weights=weights).mean == pytest.approx((values * weights).sum() / weights.sum())
    expected = np.exp((np.log(values) * weights).sum() / weights.sum())
    assert mean_interval(values, R, weights=weights, geometric=True).mean == pytest.approx(expected)


def test_different_seeds_give_slightly_different_ends_and_the_same_mean() -> None:
    values = np.random.default_rng(3).normal(size=30)
    one, two = mean_interval(values, Resampling(seed=1)), mean_interval(values, Resampling(seed=2))
    assert one.mean == two.mean
    assert one.low != two.low
    assert one.low == pytest.approx(two.low, abs=0.1)


def test_resamples_drawn_in_blocks_are_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(5).normal(size=10)
    whole = mean_interval(values, R)
    monkeypatch.setattr(bootstrap, "_CELLS_AT_ONCE", 70)
    assert [rows.stop - rows.start for rows in R.blocks(10)] == [7] * 57 + [1]
    again = mean_interval(values, R)
    for end in ("mean", "low", "high"):
        assert getattr(again, end) == pytest.approx(getattr(whole, end), rel=1e-12)


@pytest.mark.parametrize(
    ("values", "weights", "geometric", "message"),
    [
        ([], None, False, "at least one value"),
        ([1.0, float("nan")], None, False, "unit 1 has value nan"),
        ([1.0, 0.0], None, True, "above 0"),
        ([1.0, 2.0], [1.0], False, "one finite weight a unit"),
        ([1.0, 2.0], [1.0, -1.0], False, "negative"),
        ([1.0, 2.0], [0.0, 0.0], False, "above 0"),
    ],
)
def test_unusable_values_are_refused_by_name(
    values: list[float], weights: list[float] | None, geometric: bool, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        mean_interval(np.array(values), R, weights=None if weights is None else np.array(weights), geometric=geometric)


def test_pairs_of_different_lengths_are_refused() -> None:
    with pytest.raises(DataError, match="2 units against 3"):
        paired_interval(np.zeros(2), np.zeros(3), R)
