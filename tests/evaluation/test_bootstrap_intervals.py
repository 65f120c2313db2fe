"""Bootstrap intervals: coverage, equivariance, determinism, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_processing.errors import DataError
from evaluation import bootstrap
from evaluation.bootstrap import Bounds, Floats, Interval, Resampling, mean_interval, paired_draws

R = Resampling(resamples=400, confidence=0.95, seed=7)
finite = st.floats(-100, 100, allow_nan=False)
samples = st.lists(finite, min_size=1, max_size=40).map(np.array)


def paired_interval(candidate: Floats, baseline: Floats, resampling: Resampling) -> Interval:
    return paired_draws(candidate, baseline, resampling).interval(resampling.confidence)


def covered(draw: object, truth: float, trials: int = 300) -> float:
    hits = 0
    for trial in range(trials):
        values = draw(np.random.default_rng(trial))  # type: ignore[operator]
        interval = mean_interval(values, Resampling(resamples=400, seed=trial))
        hits += interval.low <= truth <= interval.high
    return hits / trials


def test_intervals_cover_the_true_mean_as_often_as_they_claim() -> None:
    assert 0.90 <= covered(lambda g: g.normal(3.0, 2.0, 80), 3.0) <= 0.985
    assert 0.90 <= covered(lambda g: g.binomial(1, 0.4, 80).astype(float), 0.4) <= 0.985
    assert 0.88 <= covered(lambda g: g.exponential(1.0, 80), 1.0) <= 0.985


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
def test_mean_is_the_mean_and_lies_between_the_smallest_and_the_largest_value(values: Floats) -> None:
    interval = mean_interval(values, R)
    assert interval.mean == pytest.approx(values.mean(), abs=1e-9)
    assert values.min() - 1e-9 <= interval.low <= interval.high <= values.max() + 1e-9
    assert interval.n == len(values)


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
    assert sum(len(block) for block in R.indices(10)) == R.resamples
    assert mean_interval(values, R) == whole


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
