"""Known answers that are scored while a run goes on: what drifts is told, warned of, and stops the run."""

import json
from pathlib import Path

import pytest

from data_processing.errors import ConfigError, DivergedError
from rlhf_core.recipes.online.canary import canary_metrics
from rlhf_core.recipes.online.run import run_online
from rlhf_core.rewards.base import ScoredResponse
from rlhf_core.rewards.tried import CHOSEN, REJECTED, TriedAnswer
from tests.online.runs import REWARD, events, final_weights, metric, online_job, prompts_folder
from tests.tiny_models import tiny_model

PAIRS = [{"prompt": f"question {i}?", "chosen": "aeiou" * (i + 1), "rejected": "xyz" * (i + 1)} for i in range(4)]


def known(*sides: tuple[str, str]) -> list[TriedAnswer]:
    return [TriedAnswer(row, side, ScoredResponse(row, [], None, [0], [0], "")) for row, side in sides]


def test_drift_is_measured_in_deviations_of_the_first_look() -> None:
    answers = known(("a", CHOSEN), ("a", REJECTED), ("b", CHOSEN), ("b", REJECTED))
    first = [3.0, 1.0, 3.0, 1.0]
    same = canary_metrics(answers, first, first)
    assert same == {
        "canary/good": 3.0,
        "canary/bad": 1.0,
        "canary/right_share": 1.0,
        "canary/drift": 0.0,
        "canary/invalid_share": 0.0,
    }
    moved = canary_metrics(answers, first, [3.5, 1.5, 3.5, None])
    assert moved["canary/drift"] == pytest.approx(0.5) and moved["canary/invalid_share"] == 0.25
    assert canary_metrics(answers, first, [0.0, 1.0, 3.0, 1.0])["canary/right_share"] == 0.5
    assert canary_metrics(answers, first, [None] * 4) == {"canary/invalid_share": 1.0}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


def pairs_file(folder: Path) -> str:
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    return str(folder / "pairs.jsonl")


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_a_reward_that_drifts_stops_the_run_and_the_looks_change_nothing(model: Path, tmp_path: Path) -> None:
    canary = {"every_steps": 1, "path": pairs_file(tmp_path)}
    looked, plain = (
        online_job(tmp_path / name, model, prompts_folder(tmp_path / name / "data"), canary=given)
        for name, given in (("looked", canary), ("plain", {}))
    )
    for job in (looked, plain):
        run_online(job)
    assert metric(looked, "canary/right_share") == [1.0, 1.0] and metric(looked, "canary/drift") == [0.0, 0.0]
    expected = final_weights(plain)
    assert all(tensor.equal(expected[name]) for name, tensor in final_weights(looked).items())

    data = prompts_folder(tmp_path / "drifts" / "data", label=str(tmp_path / "calls"))
    rewards = [{"kind": "python", "function": f"{REWARD}:drifts"}]
    job = online_job(tmp_path / "drifts", model, data, canary=canary, rewards=rewards, steps=9, method="reinforce")
    with pytest.raises(DivergedError, match=r"known answers are worth has changed by .* canary\.max_drift=0\.25.*held 3 rounds"):
        run_online(job)
    drift = metric(job, "canary/drift")
    assert drift[0] == 0.0 < drift[1] < drift[2]
    assert len([event for event in events(job, "warning") if "known answers" in event["message"]]) == 3


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_looks_without_known_answers_are_refused(model: Path, tmp_path: Path) -> None:
    job = online_job(tmp_path, model, prompts_folder(tmp_path / "data"), canary={"every_steps": 1})
    with pytest.raises(ConfigError, match=r"no preference table with a validation split; name a file"):
        run_online(job)
