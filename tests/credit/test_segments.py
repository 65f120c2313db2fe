"""Segments tile a response, earn what was measured, and nothing is lost on the way to tokens; fits are found again where they were put."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_processing.errors import ConfigError
from rlhf_core.credit.positions import MissingFitError, PositionFit, bins, fit, read_params, with_params
from rlhf_core.credit.segments import WHOLE, normalised, penalty_rewards, segments, token_rewards
from rlhf_core.objectives.reward import credit_entropy, pairwise_reward_loss
from rlhf_core.settings.segments import DENSE_MODES, SegmentMode

entropies = st.lists(st.floats(0, 5), min_size=1, max_size=30)
NAMES = ("reward_model", "preference", "peak", "avg")


@given(entropies, st.floats(0, 6), st.booleans(), st.integers(0, 30))
def test_segments_tile_the_answer(entropy: list[float], threshold: float, ended: bool, start: int) -> None:
    spans = segments(entropy, len(entropy), threshold, ended=ended, start=start)
    end = len(entropy) - ended
    begins = start if start < end else 0
    assert spans[0][0] == begins and spans[-1][1] == (end if start < end else len(entropy))
    assert all(one[1] == two[0] for one, two in pairwise(spans)) and all(a < b for a, b in spans)


@given(entropies, st.floats(0, 6), st.floats(0, 6))
def test_a_higher_threshold_never_gives_more(entropy: list[float], one: float, two: float) -> None:
    low, high = sorted((one, two))
    assert len(segments(entropy, len(entropy), high, ended=True)) <= len(segments(entropy, len(entropy), low, ended=True))


def test_the_two_ends_of_the_threshold_are_tokens_and_the_whole() -> None:
    entropy = [0.5] * 6
    assert segments(entropy, 6, 0.0, ended=True) == [(k, k + 1) for k in range(5)]
    assert segments(entropy, 6, WHOLE, ended=True) == [(0, 6)], "its end token is in it, where its value is read"
    assert segments(entropy, 1, 1.5, ended=True) == [(0, 1)], "an end token alone"


@given(entropies, st.floats(0.1, 3), st.data())
def test_tokens_earn_together_what_segments_do(entropy: list[float], threshold: float, data: st.DataObject) -> None:
    spans = segments(entropy, len(entropy), threshold, ended=False)
    earned = data.draw(st.lists(st.floats(-10, 10), min_size=len(spans), max_size=len(spans)))
    for mode in ("segment_normalization", "every_segment_last"):
        rewards = token_rewards(earned, spans, len(entropy), mode)
        assert math.fsum(rewards) == pytest.approx(math.fsum(earned), abs=1e-9)
    repeated = token_rewards(earned, spans, len(entropy), "same_segment_last")
    assert repeated == [value for (start, end), value in zip(spans, earned, strict=True) for _ in range(end - start)]
    for mode in set(get_args(SegmentMode)) - DENSE_MODES:
        assert token_rewards(earned, spans, len(entropy), mode)[:-1] == [0.0] * (len(entropy) - 1)


def test_rewards_of_tokens_are_clipped_after_they_are_spread() -> None:
    assert token_rewards([30.0], [(0, 2)], 2, "segment_normalization") == [10.0, 10.0]
    assert token_rewards([-18.0], [(0, 2)], 2, "segment_normalization", divided_by=3.0) == [-3.0, -3.0]
    assert token_rewards([1.0, 3.0], [(0, 1), (1, 2)], 2, "segment_last_logsumexp", tau=0.5)[-1] == pytest.approx(
        0.5 * math.log(math.exp(2.0) + math.exp(6.0))
    )


def test_a_penalty_stands_where_the_mode_rewards() -> None:
    assert penalty_rewards(-0.05, 3, "same_segment_last") == [-0.05] * 3
    assert penalty_rewards(-0.05, 3, "segment_last_avg") == [0.0, 0.0, -0.05]


def test_a_deviation_below_the_floor_flips_no_sign() -> None:
    token_level = PositionFit(1.7340, 0.9906, 1.3212, 5.4513)
    assert token_level.std(0.001) < 0
    first, *_ = normalised([100.0] * 1000, token_level, 0.1)
    assert first == pytest.approx((100.0 - token_level.mean(0.001)) / 0.1)


def test_credit_entropy_is_that_of_the_definition_and_none_for_one_segment() -> None:
    rewards = torch.tensor([[0.3, -1.2, 2.0], [5.0, 0.0, 0.0]], dtype=torch.float64)
    mask = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    credit = torch.softmax(rewards[0] / 2, 0)
    expected = -(credit * credit.log()).sum()
    torch.testing.assert_close(credit_entropy(rewards, mask, tau=2.0), torch.tensor([expected, 0.0], dtype=torch.float64))
    normed = credit_entropy(rewards, mask, tau=2.0, by_log_k=True)
    torch.testing.assert_close(normed, torch.tensor([expected / math.log(3), 0.0], dtype=torch.float64))
    rewards[1, 1:] = float("nan")
    rewards.requires_grad_()
    credit_entropy(torch.where(mask.bool(), rewards, 0.0), mask).sum().backward()
    assert rewards.grad is not None and rewards.grad.isfinite().all()


def test_without_entropy_the_loss_is_bradley_terry_of_the_means() -> None:
    chosen, rejected = torch.tensor([1.0, -1.0]), torch.tensor([0.0, 0.5])
    assert torch.equal(pairwise_reward_loss(chosen, rejected), torch.nn.functional.softplus(rejected - chosen))


def test_a_planted_line_is_found_again() -> None:
    line = PositionFit(0.9, 0.4, 0.7, 2.0)
    generator = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(4000):
        count = int(torch.randint(1, 9, (1,), generator=generator))
        draws = torch.randn(count, generator=generator).tolist()
        rows.append([line.mean((k + 1) / count) + line.std((k + 1) / count) * draw for k, draw in enumerate(draws)])
    mean, std = fit(bins(rows), weight_by_count=True)
    assert (mean.w, mean.b, std.w, std.b) == pytest.approx((0.9, 0.7, 0.4, 2.0), abs=0.1)


def test_what_cannot_be_fitted_is_told_or_flat() -> None:
    mean, std = fit(bins([[1.0], [3.0]]))
    assert (mean.w, mean.b, std.w, std.b) == (0.0, 2.0, 0.0, 1.0), "one position has a level and no slope"
    with pytest.raises(ConfigError, match="fit_min_count=3"):
        fit(bins([[1.0], [3.0]]), min_count=3)
    assert "0.000" in bins([[0.0] * 2500]).mean
    fit(bins([[float(k) for k in range(2500)]]))  # the first position's logarithm would be -23


def test_params_are_found_by_number_and_what_is_missing_is_named(tmp_path: Path) -> None:
    path = tmp_path / "params.json"
    path.write_text(json.dumps(with_params(path, NAMES, 2.0, PositionFit(0.1, 0.2, 0.3, 0.4))))
    path.write_text(json.dumps(with_params(path, NAMES, 1.5, PositionFit(1.0, 2.0, 3.0, 4.0))))
    assert json.loads(path.read_text())["reward_model"]["preference"]["peak"]["avg"]["1.5"] == [1.0, 2.0, 3.0, 4.0], (
        "both slopes, then both intercepts"
    )
    assert read_params(path, NAMES, 2) == PositionFit(0.1, 0.2, 0.3, 0.4)
    path.write_text(path.read_text().replace('"2"', '"2.0"'))
    assert read_params(path, NAMES, 2) == PositionFit(0.1, 0.2, 0.3, 0.4)
    long = 1.23456789
    path.write_text(json.dumps(with_params(path, NAMES, long, PositionFit(5.0, 6.0, 7.0, 8.0))))
    assert read_params(path, NAMES, long) == PositionFit(5.0, 6.0, 7.0, 8.0)
    path.write_text(path.read_text().replace(f'"{long}"', '"2.5"'))
    with pytest.raises(ConfigError, match=r"threshold 3; there are \['1.5', '2.0', '2.5'\]"):
        read_params(path, NAMES, 3.0)
    with pytest.raises(ConfigError, match=r"no fit for reward_model/other; there are \['preference'\]"):
        read_params(path, ("reward_model", "other", "peak", "avg"), 2.0)
    with pytest.raises(MissingFitError, match="there is no fit of segment rewards"):
        read_params(tmp_path / "absent.json", NAMES, 2.0)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        '{"reward_model": 3}',
        '{"reward_model": {"preference": {"peak": {"avg": {"two": [1, 2, 3, 4]}}}}}',
        '{"reward_model": {"preference": {"peak": {"avg": {"2.0": [1, 2, "x", 4]}}}}}',
        '{"reward_model": {"preference": {"peak": {"avg": {"2.0": [1, 2, 3]}}}}}',
        '{"reward_model": {"preference": {"peak": {"avg": [1]}}}}',
    ],
)
def test_damaged_params_are_not_taken_for_missing_ones(tmp_path: Path, content: str) -> None:
    path = tmp_path / "params.json"
    path.write_text(content)
    with pytest.raises(ConfigError) as error:
        read_params(path, NAMES, 2.0)
    assert not isinstance(error.value, MissingFitError)


def test_params_that_cannot_be_opened_are_not_taken_for_missing_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        read_params(tmp_path, NAMES, 2.0)
    assert not isinstance(error.value, MissingFitError)
