"""The policy is measured while it trains: training does not see it, the best weights stay, and a run that gets no better ends."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_processing.errors import ConfigError, DivergedError
from data_processing.schemas import read_table, to_table, write_table
from rlhf_core.recipes.online.evaluation import evaluation_metrics
from rlhf_core.recipes.online.job import OnlineJob
from rlhf_core.recipes.online.run import run_online
from rlhf_core.rewards.base import ScoredResponse
from rlhf_core.rewards.compose import ComposedReward, Rewards
from rlhf_core.rewards.python_function import PythonScorer
from rlhf_core.rewards.weighing import Weighing
from tests.online.runs import REWARD, events, final_weights, online_job, prompts_folder, rollouts
from tests.tiny_models import tiny_model


def with_validation(data: Path, count: int = 5) -> Path:
    rows = read_table("prompts", data / "prompts" / "train.parquet").to_pylist()[:count]
    rows = [{**row, "id": f"v{i}"} for i, row in enumerate(rows)]
    write_table("prompts", to_table("prompts", rows), data / "prompts" / "validation.parquet")
    return data


def measured_job(folder: Path, model: Path, **settings: Any) -> OnlineJob:
    """A run that earns by saying fewer vowels, and meets an infinite reward in its third round unless `folder/calls` counts past it."""
    data = with_validation(prompts_folder(folder / "data", label=str(folder / "calls")))
    rewards = [
        {"kind": "python", "function": f"{REWARD}:vowels", "weight": -1.0},
        {"kind": "python", "function": f"{REWARD}:infinite_once_trained", "weight": 0.0},
    ]
    changes = {"method": "grpo", "steps": 5, "rewards": rewards, "checkpoint_every_steps": 1, **settings}
    return online_job(folder, model, data, **changes)


def evaluations(job: OnlineJob) -> dict[int, dict[str, float]]:
    found = [line for line in events(job, "metrics") if "eval_reward" in line["values"]]
    return {line["step"]: line["values"] for line in found}


MEASURED = {"eval_every_steps": 2, "keep_best": "eval_reward/vowels", "ema_decay": 0.5}


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("async_steps", [0, 1])
def test_measuring_changes_nothing_and_a_resumed_run_keeps_the_same_best_weights(tmp_path: Path, async_steps: int) -> None:
    model = tiny_model(tmp_path)
    # One round more than for stale weights is far for a tiny model.
    shared = {"async_steps": async_steps, "rollout__max_logprob_gap": 5.0}
    plain, broken = (
        measured_job(tmp_path / name, model, **shared, **settings) for name, settings in (("plain", {}), ("broken", MEASURED))
    )
    (tmp_path / "plain" / "calls").write_text("x" * 100)
    run_online(plain)
    assert not evaluations(plain)
    with pytest.raises(DivergedError, match="gave inf"):
        run_online(broken)
    run_online(broken)
    assert rollouts(broken)["response_ids"].to_pylist() == rollouts(plain)["response_ids"].to_pylist()
    found = evaluations(broken)
    assert sorted(found) == [2, 4, 5]
    best = max(found, key=lambda step: found[step]["eval_reward/vowels"])
    assert best < 5, "what it learns is to say fewer"
    assert found[2]["eval_reward"] == pytest.approx(-found[2]["eval_reward/vowels"])
    # A run that ends where that one was best: its average is what the other has kept.
    short = measured_job(tmp_path / "short", model, **shared, **{**MEASURED, "steps": best, "eval_every_steps": best})
    (tmp_path / "short" / "calls").write_text("x" * 100)
    run_online(short)
    assert evaluations(short)[best] == found[best]
    expected, kept, last = final_weights(short), final_weights(broken), final_weights(plain)
    assert all(tensor.equal(expected[name]) for name, tensor in kept.items())
    assert not all(tensor.equal(last[name]) for name, tensor in kept.items())


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_a_run_that_gets_no_better_ends_with_its_best_weights(tmp_path: Path) -> None:
    data = with_validation(prompts_folder(tmp_path / "data"))
    rewards = [
        {"kind": "python", "function": f"{REWARD}:{name}", "weight": weight} for name, weight in (("vowels", 1), ("constant", 0))
    ]
    settings = {
        "method": "grpo",
        "steps": 9,
        "rewards": rewards,
        "eval_every_steps": 1,
        "keep_best": "eval_reward/constant",
        "patience": 2,
    }
    job = online_job(tmp_path, tiny_model(tmp_path), data, **settings, evaluation={"greedy": False})
    run_online(job)
    assert sorted(evaluations(job)) == [1, 2, 3]
    [line] = [event["message"] for event in events(job, "progress") if event["message"].startswith("ended")]
    assert line == "ended after round 4: eval_reward/constant was no better than at step 1 in 2 evaluations in a row"
    assert final_weights(job)


def test_without_validation_prompts_nothing_is_started(tmp_path: Path) -> None:
    job = online_job(tmp_path, tiny_model(tmp_path), prompts_folder(tmp_path / "data"), eval_every_steps=1)
    with pytest.raises(ConfigError, match=r"online\.eval_every_steps=1 without prompts in the validation split"):
        run_online(job)


def test_what_is_only_measured_is_on_no_scale_and_moves_none() -> None:
    responses = [ScoredResponse("p", [], None, [1], [5], text) for text in ("a", "bb")]
    reward = ComposedReward([(PythonScorer(f"{REWARD}:vowels"), Weighing(2.0, normalise="running"))])
    learnt = reward.score(responses)
    found = reward.score(responses, is_learnt=False)
    assert (found.total, found.running) == ([2.0, 0.0], learnt.running)
    assert learnt.total != found.total


def test_answers_without_a_reward_are_told_apart() -> None:
    answers = [ScoredResponse("p", [], None, [1], [5] * n, "") for n in (2, 4)]
    answers[1] = replace(answers[1], finish_reason="length")
    found = evaluation_metrics(Rewards([None, 3.0], {"a": [float("nan"), 3.0]}), answers)
    assert found == {
        "eval_reward": 3.0,
        "eval_reward/a": 3.0,
        "eval_invalid_share": 0.5,
        "eval_length": 3.0,
        "eval_truncated_share": 0.5,
    }
