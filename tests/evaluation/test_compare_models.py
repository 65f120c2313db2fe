"""Verdicts from paired differences: who is better, who becomes challenger, what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from data_processing.errors import ConfigError, DataError
from evaluation.config import CompareConfig
from evaluation.evaluation_artifact import Evaluation
from evaluation.scores import HELD_OUT, Measure, Score
from evaluation.significance import holm
from evaluation.verdict import compare

SCORE = Measure("procedures.score", "Score")
PERPLEXITY = Measure("perplexity", "Perplexity", better="lower", geometric=True)
LENGTH = Measure("length", "Length", better="neither")
N = 40


def evaluation(
    scores: Sequence[float], *, perplexity: float = 2.0, measures: Sequence[Measure] = (SCORE, PERPLEXITY, LENGTH)
) -> Evaluation:
    """A model with the given score on prompts p0, p1, ..., each answered sampled and greedily."""
    predictions: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for i, value in enumerate(scores):
        for decoding in ("sampled", "greedy"):
            identity = f"p{i}/{decoding}"
            predictions.append({"id": identity, "prompt_id": f"p{i}", "decoding": decoding})
            rows += [Score(identity, SCORE, value).to_row(), Score(identity, LENGTH, 10 + i).to_row()]
        rows.append(Score(f"row{i}", PERPLEXITY, perplexity + 0.01 * i, weight=5 + i).to_row())
    known = {m.name for m in measures}
    return Evaluation(predictions, [row for row in rows if row["metric"] in known], {m.name: m for m in measures})


def settings(**fields: Any) -> CompareConfig:
    return CompareConfig(**{"baseline": "sft", "candidates": ["preference", "online"], **fields})


def noisy(mean: float, seed: int) -> list[float]:
    return list(mean + np.random.default_rng(seed).normal(0, 0.1, N))


def models(preference: float = 0.0, online: float = 0.0) -> dict[str, Evaluation]:
    sft = noisy(0.4, 0)
    shifted = [[value + gain for value in noisy(0.4, seed)] for seed, gain in ((1, preference), (2, online))]
    return {
        "base": evaluation([0.0] * N),
        "sft": evaluation(sft),
        "preference": evaluation(shifted[0]),
        "online": evaluation(shifted[1]),
    }


def test_the_candidate_with_the_largest_sure_gain_is_the_challenger() -> None:
    result = compare(models(preference=0.2, online=0.4), settings(), seed=0)
    assert result.challenger == "online"
    assert result.judgements == {"base": "worse", "preference": "better", "online": "better"}
    assert result.decoding == "sampled"
    gain = result.paired["online"]["sampled"]["procedures.score"]
    assert 0 < gain.low < gain.mean < gain.high
    assert "online beats sft on sampled procedures.score" in result.reason
    assert "40 paired prompts" in result.reason


def test_no_challenger_when_no_gain_exceeds_its_interval() -> None:
    result = compare(models(preference=0.0, online=-0.4), settings(), seed=0)
    assert result.challenger is None
    assert result.judgements["online"] == "worse"
    assert "preference: no difference, online: worse" in result.reason


def test_a_model_outside_the_candidates_cannot_win() -> None:
    result = compare(models(preference=0.2, online=0.4), settings(candidates=["preference"]), seed=0)
    assert result.challenger == "preference"


def test_a_model_against_its_own_answers_shows_no_difference() -> None:
    sft = evaluation(noisy(0.4, 0))
    result = compare({"sft": sft, "online": evaluation(noisy(0.4, 0))}, settings(candidates=["online"]), seed=0)
    difference = result.paired["online"]["greedy"]["procedures.score"]
    assert (difference.mean, difference.low, difference.high) == (0.0, 0.0, 0.0)
    assert result.challenger is None


def test_lower_is_better_where_the_measure_says_so() -> None:
    evaluations = {"sft": evaluation([0.5] * N, perplexity=3.0), "online": evaluation([0.1] * N, perplexity=2.0)}
    result = compare(evaluations, settings(primary_metric="perplexity", candidates=["online"]), seed=0)
    assert result.decoding == HELD_OUT
    assert result.challenger == "online"
    assert result.paired["online"][HELD_OUT]["perplexity"].high < 0


def test_perplexity_is_aggregated_over_tokens_not_rows() -> None:
    result = compare({"sft": evaluation([0.5] * N)}, settings(candidates=[]), seed=0)
    weights = np.arange(N) + 5
    expected = np.exp((np.log(2.0 + 0.01 * np.arange(N)) * weights).sum() / weights.sum())
    assert result.models["sft"][HELD_OUT]["perplexity"].mean == pytest.approx(expected)


def test_several_samples_of_a_prompt_count_once() -> None:
    predictions = [{"id": f"a{i}", "prompt_id": "p0" if i < 3 else "p1", "decoding": "sampled"} for i in range(4)]
    rows = [Score(f"a{i}", SCORE, float(i < 3)).to_row() for i in range(4)]
    values = Evaluation(predictions, rows, {SCORE.name: SCORE}).values["sampled"][SCORE.name]
    assert values.units == ("p0", "p1")
    assert values.values.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("n", [1, 2, 8, 19])
def test_too_few_prompts_give_no_verdict_whatever_their_scores(n: int) -> None:
    models = {"sft": evaluation([0.0] * n), "online": evaluation([1.0] * n)}
    result = compare(models, settings(candidates=["online"]), seed=0)
    assert (result.judgements["online"], result.challenger) == ("too few prompts", None)
    assert f"Too few prompts: {n} of 20 needed for a verdict on sampled procedures.score" in result.reason


def test_the_number_of_prompts_that_a_verdict_needs_is_a_setting() -> None:
    models = {"sft": evaluation([0.1] * 10), "online": evaluation([0.9] * 10)}
    assert compare(models, settings(candidates=["online"]), seed=0).challenger is None
    assert compare(models, settings(candidates=["online"], min_prompts=10), seed=0).challenger == "online"


def test_a_gain_that_one_candidate_is_judged_by_must_be_surer_beside_others() -> None:
    sft = noisy(0.4, 0)
    gain = {"c0": evaluation(list(np.array(sft) + np.random.default_rng(1).normal(0.06, 0.1, N)))}
    idle = {f"c{i}": evaluation(list(np.array(sft) + np.random.default_rng(5 + i).normal(0, 0.1, N))) for i in range(1, 8)}
    alone = compare({"sft": evaluation(sft), **gain}, settings(candidates=["c0"]), seed=0)
    among = compare({"sft": evaluation(sft), **gain, **idle}, settings(candidates=[f"c{i}" for i in range(8)]), seed=0)
    assert (alone.challenger, among.challenger) == ("c0", None)
    assert among.judged["c0"].p == alone.judged["c0"].p <= 0.05
    assert among.judged["c0"].corrected_p == pytest.approx(8 * alone.judged["c0"].p)
    assert among.judged["c0"].detectable is not None
    assert alone.judged["c0"].detectable is not None
    assert among.judged["c0"].detectable > alone.judged["c0"].detectable


def test_models_that_are_no_candidates_do_not_raise_the_bar() -> None:
    with_base = compare(models(preference=0.2), settings(candidates=["preference"]), seed=0)
    without = models(preference=0.2)
    del without["base"], without["online"]
    assert with_base.judged["preference"] == compare(without, settings(candidates=["preference"]), seed=0).judged["preference"]


def test_holms_correction_is_that_of_its_paper() -> None:
    p_values = np.array([0.01, 0.04, 0.03, 0.005])
    assert holm(p_values).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.6, 0.7])).tolist() == [1.0, 1.0]


def test_a_reason_names_the_gain_that_would_have_been_found() -> None:
    result = compare(models(), settings(), seed=0)
    sizes = [result.judged[name].detectable or 0.0 for name in ("preference", "online")]
    assert f"A gain of {max(sizes):.2f} would have been found 4 times in 5." in result.reason
    assert 0.05 < min(sizes) < max(sizes) < 0.2


def test_as_many_resamples_are_drawn_as_it_takes_to_tell_the_best_of_all_candidates_from_chance() -> None:
    many = [f"c{i}" for i in range(8)]
    assert settings(candidates=many, bootstrap_resamples=200).resamples == 320
    assert settings(candidates=many, bootstrap_resamples=2000).resamples == 2000
    gain = {"c0": evaluation(noisy(0.8, 1))} | {name: evaluation(noisy(0.4, 2)) for name in many[1:]}
    evaluations = {"sft": evaluation(noisy(0.4, 0)), **gain}
    assert compare(evaluations, settings(candidates=many, bootstrap_resamples=100), seed=0).challenger == "c0"


def test_the_metric_that_decides_is_the_first_that_was_measured() -> None:
    assert compare(models(), settings(), seed=0).primary_metric == "procedures.score"
    without = {name: evaluation([0.5] * N, measures=(PERPLEXITY, LENGTH)) for name in ("sft", "online")}
    assert compare(without, settings(candidates=["online"]), seed=0).primary_metric == "perplexity"


def test_missing_candidates_are_named_in_a_warning() -> None:
    warnings: list[str] = []
    evaluations = models(preference=0.3)
    del evaluations["online"]
    result = compare(evaluations, settings(), seed=0, warn=warnings.append)
    assert result.challenger == "preference"
    assert len(warnings) == 1
    assert "'online' was not evaluated" in warnings[0]


def test_models_that_answered_different_prompts_are_refused() -> None:
    with pytest.raises(DataError, match=r"compare 'online', greedy .*1 prompts were answered by only one"):
        compare({"sft": evaluation([0.1] * 3), "online": evaluation([0.1] * 4)}, settings(candidates=["online"]), seed=0)


def test_a_baseline_that_was_not_evaluated_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"compare.baseline: 'sft' was not evaluated; evaluated models: \['base'\]"):
        compare({"base": evaluation([0.1] * 3)}, settings(), seed=0)


def test_a_baseline_among_the_candidates_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be its own challenger"):
        compare(models(), settings(candidates=["sft"]), seed=0)


def test_a_primary_metric_that_was_not_measured_is_refused_with_the_choices() -> None:
    with pytest.raises(ConfigError, match=r"'reward' was not measured for 'sft'.*perplexity.*procedures.score"):
        compare(models(), settings(primary_metric="reward"), seed=0)


def test_a_primary_metric_without_a_better_direction_is_refused() -> None:
    with pytest.raises(ConfigError, match="neither more nor less of 'length'"):
        compare(models(), settings(primary_metric="length"), seed=0)


def test_the_verdict_is_json_with_every_number() -> None:
    verdict = compare(models(online=0.4), settings(), seed=0).to_json()
    assert set(verdict["models"]) == {"base", "sft", "preference", "online"}
    assert set(verdict["paired"]) == {"base", "preference", "online"}
    assert set(verdict["models"]["sft"]["greedy"]["procedures.score"]) == {"mean", "low", "high", "n"}
    assert verdict["judgements"]["online"] == verdict["tests"]["online"]["judgement"] == "better"
    assert set(verdict["tests"]["online"]) == {"judgement", "p", "corrected_p", "detectable", "n"}
    assert (verdict["min_prompts"], verdict["tests"]["online"]["n"]) == (20, N)
    assert (verdict["challenger"], verdict["baseline"], verdict["primary_metric"]) == ("online", "sft", "procedures.score")
