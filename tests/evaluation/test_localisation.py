"""Credit localisation on rewards that are known: a scorer that sees the faulty step finds it, one that sees nothing is as good as chance."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import pytest

from data_processing.config import DataConfig, ProceduresConfig
from data_processing.errors import ConfigError
from data_processing.prepare import prepare
from evaluation.config import EvaluateConfig
from evaluation.job import EvaluationJob
from evaluation.localisation import CHANCE, LOCALISATION, localised, spoiled_rows
from evaluation.metrics import METRICS, NotMeasured
from flows.settings.layers import validate
from rlhf_core.credit.positions import PositionFit
from rlhf_core.credit.segment_reward_model import SegmentScorer
from rlhf_core.events import EventLog
from rlhf_core.models.load import load_tokenizer
from rlhf_core.rewards.base import ScoredResponse
from rlhf_core.rewards.reward_model import RewardModelScorer
from tests.tiny_models import tiny_model


class Planted:
    """Scores texts by a function."""

    def __init__(self, worth: Callable[[ScoredResponse], float]) -> None:
        self._worth = worth

    def score(self, responses: Sequence[ScoredResponse]) -> list[float]:
        return [self._worth(response) for response in responses]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> EvaluationJob:
    folder = tmp_path_factory.mktemp("world")
    sizes = ProceduresConfig(difficulty=2, sft_rows=2, preference_pairs=2, prompt_rows=2, validation_rows=2, test_rows=40)
    prepare(DataConfig(procedures=sizes), folder / "data", seed=1)
    model = tiny_model(folder, "llama")
    config = EvaluateConfig(metrics=["localisation"], max_prompts=30, localisation={"counterfactual": "mask"})
    return EvaluationJob(
        config, model, "m", model, folder / "data", None, folder, seed=3, events=EventLog(folder / "events.jsonl")
    )


def shares(job: EvaluationJob, worth: Callable[[ScoredResponse], float], **settings: Any) -> tuple[float, float, int]:
    """Localisation, chance and how many rows were counted."""
    config = job.config.model_copy(update={"localisation": job.config.localisation.model_copy(update=settings)})
    changed = EvaluationJob(config, job.model, "m", job.base, job.data, None, job.output, seed=3, events=job.events)
    scores = localised(changed, spoiled_rows(job), cast("RewardModelScorer", Planted(worth)))
    found = [score.value for score in scores if score.measure is LOCALISATION]
    return fmean(found), fmean(score.value for score in scores if score.measure is CHANCE), len(found)


@pytest.mark.seconds
@pytest.mark.parametrize("mode", ["mask", "delete"])
def test_who_sees_the_faulty_step_finds_it(job: EvaluationJob, mode: str) -> None:
    faulty = {row["id"]: _faulty_line(row) for row in spoiled_rows(job)}

    def worth(response: ScoredResponse) -> float:
        return -float(faulty[response.prompt_id] in response.text)

    found, chance, count = shares(job, worth, counterfactual=mode)
    assert found == 1.0 and 0.2 < chance < 0.5 and 20 <= count <= 30
    opposite, _, _ = shares(job, lambda response: -worth(response), counterfactual=mode)
    assert opposite == 0.0


@pytest.mark.seconds
def test_who_sees_nothing_is_as_good_as_chance(job: EvaluationJob) -> None:
    found, chance, _ = shares(job, lambda response: 0.5)
    assert found == pytest.approx(chance)


@pytest.mark.seconds
def test_it_is_not_measured_without_a_reward_model_or_such_pairs(job: EvaluationJob, tmp_path: Path) -> None:
    with pytest.raises(NotMeasured, match="no reward model"):
        METRICS["localisation"](job, [])
    bare = EvaluationJob(job.config, job.model, "m", job.base, tmp_path, None, tmp_path, seed=3, events=job.events)
    with pytest.raises(NotMeasured, match="no held-out pairs whose faulty step is known"):
        METRICS["localisation"](bare, [])


def test_units_by_entropy_are_refused() -> None:
    with pytest.raises(ConfigError, match="only labels tell units"):
        validate({"evaluate": {"localisation": {"unit_extraction": "entropy"}}})


def test_what_only_a_sum_of_rewards_has_is_refused_of_a_metric() -> None:
    with pytest.raises(ConfigError, match=r"weight=0.5: that is of a reward that others are added to"):
        validate({"evaluate": {"vr_cli": {"weight": 0.5}}})


class OfSegments(SegmentScorer):
    """Each token a segment; those of the faulty step are the worst."""

    def __init__(self, job: EvaluationJob) -> None:
        self._tokenizer = load_tokenizer(job.model)
        self._faulty = {row["id"]: _faulty_line(row) for row in spoiled_rows(job)}

    def score(self, responses: Sequence[ScoredResponse], tell: Any = None) -> list[float]:
        return [0.0] * len(responses)

    def fit(self, model: Path) -> PositionFit:
        return PositionFit(0.0, 0.0, 0.0, 1.0)

    def read(self, responses: Sequence[ScoredResponse], tell: Any = None) -> list[tuple[list[Any], list[float]]]:
        found: list[tuple[list[Any], list[float]]] = []
        for response in responses:
            texts = [self._tokenizer.decode(response.response_ids[: k + 1]) for k in range(len(response.response_ids))]
            start = texts[-1].index(self._faulty[response.prompt_id])
            end = start + len(self._faulty[response.prompt_id])
            values = [-1.0 if start < len(text) <= end else 0.0 for text in texts]
            found.append(([(k, k + 1) for k in range(len(texts))], values))
        return found


def _faulty_line(row: Mapping[str, Any]) -> str:
    line: str = row["rejected"][-1]["content"].splitlines()[json.loads(row["detail"])["faulty_step"]]
    return line


@pytest.mark.seconds
def test_segments_tell_by_what_they_give_the_tokens_of_a_step(job: EvaluationJob) -> None:
    with_model = dataclasses.replace(job, reward_model=job.model)
    scores = localised(with_model, spoiled_rows(job), OfSegments(job))
    found = [score.value for score in scores if score.measure is LOCALISATION]
    assert len(found) >= 20 and fmean(found) == 1.0
