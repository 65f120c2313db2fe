"""What goes wrong in a reward, in whole runs: no finished round is lost, and a response without a reward teaches nothing."""

import math
import threading
import time
from pathlib import Path

import pytest

from data_processing.errors import DataError, DivergedError, PreemptedError
from rlhf_core.engine.optimizer import learning_rate_at
from rlhf_core.events import EventLog
from rlhf_core.recipes.online.alarms import check_rewards
from rlhf_core.recipes.online.job import OnlineJob
from rlhf_core.recipes.online.run import run_online
from rlhf_core.recipes.stop import STOP_FILE_NAME
from rlhf_core.rewards.compose import Rewards
from rlhf_core.rewards.errors import TransientRewardError
from rlhf_core.settings.online import OnlineConfig
from tests.online.runs import REWARD, events, final_weights, metric, online_job, prompts_folder, rollouts
from tests.tiny_models import tiny_model

pytestmark = [pytest.mark.usefixtures("ray_local"), pytest.mark.slow]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


def counted_job(folder: Path, model: Path, function: str, **settings: object) -> OnlineJob:
    """A run whose reward counts its calls in `folder/calls`."""
    data = prompts_folder(folder / "data", label=str(folder / "calls"))
    rewards = [{"kind": "python", "function": f"{REWARD}:{function}"}]
    return online_job(folder, model, data, method="grpo", rewards=rewards, **settings)


def stop_at_call(job: OnlineJob, number: int, asked_at: list[float]) -> None:
    """Ask the run to stop while its reward is called for that time."""
    calls = job.data.parent / "calls"
    while not calls.exists() or len(calls.read_text()) < number:
        time.sleep(0.02)
    (job.resume / STOP_FILE_NAME).touch()
    asked_at.append(time.monotonic())


def trained_whole_and_not(folder: Path, model: Path, function: str, **settings: object) -> list[OnlineJob]:
    """Two runs of the same four rounds, the first of them done: it never met what goes wrong in `function`'s third call."""
    settings |= {"steps": 4, "checkpoint_every_steps": 20, "optimizer__learning_rate": 1e-3}
    jobs = [counted_job(folder / name, model, function, **settings) for name in ("whole", "broken")]
    (folder / "whole" / "calls").write_text("x" * 4)
    run_online(jobs[0])
    return jobs


def check_nothing_was_lost(whole: OnlineJob, job: OnlineJob) -> None:
    """Go on with `job`, which ended in its third round, and compare."""
    assert [event["step"] for event in events(job, "metrics")] == [1, 2]
    run_online(job)
    assert [event["step"] for event in events(job, "metrics")] == [1, 2, 3, 4]
    assert rollouts(job).equals(rollouts(whole))
    expected, weights = final_weights(whole), final_weights(job)
    assert all(weights[name].equal(tensor) for name, tensor in expected.items())


def test_a_reward_that_stays_away_costs_no_finished_round(model: Path, tmp_path: Path) -> None:
    whole, job = trained_whole_and_not(tmp_path, model, "away_once_trained", reward_retries=1, reward_retry_wait_s=0.01)
    with pytest.raises(TransientRewardError, match=r"reward \(rank 0\) in score: .*failed 2 times in a row, .*judge is away"):
        run_online(job)
    check_nothing_was_lost(whole, job)


def test_a_stop_amid_a_round_is_seen_at_once_and_keeps_what_is_drawn_ahead(model: Path, tmp_path: Path) -> None:
    whole, job = trained_whole_and_not(tmp_path, model, "endless_once_trained", async_steps=1)
    asked_at: list[float] = []
    threading.Thread(target=stop_at_call, args=(job, 3, asked_at), daemon=True).start()
    with pytest.raises(PreemptedError, match="asked to stop after 2 of 4 rounds; a checkpoint is saved"):
        run_online(job)
    # The call itself would take ten minutes.
    assert time.monotonic() - asked_at[0] < 30
    (job.resume / STOP_FILE_NAME).unlink()
    check_nothing_was_lost(whole, job)


def test_a_response_without_a_reward_is_left_out_and_schedules_count_rounds(model: Path, tmp_path: Path) -> None:
    job = counted_job(tmp_path, model, "patchy", steps=3, optimizer__schedule="linear", optimizer__learning_rate=1e-3)
    run_online(job)
    table = rollouts(job).to_pylist()
    missing = [row for row in table if row["reward"] is None]
    assert len(missing) == 3 * 2
    assert all(dict(row["rewards"]) == {"patchy": None} for row in missing)
    assert metric(job, "reward/invalid_share") == [2 / 64] * 3
    for name in ("reward/mean", "policy/loss", "policy/grad_norm"):
        assert all(math.isfinite(value) for event in events(job, "metrics") for value in [event["values"].get(name, 0.0)])
    warnings = [event["message"] for event in events(job, "warning")]
    assert sum("2 of 64 responses have no valid reward (reward 'patchy' gave NaN for 1, none of" in w for w in warnings) == 3
    # The first round trains nothing, as all its rewards are equal; the others have their own rates all the same.
    assert metric(job, "policy/skipped_steps") == [2, 0, 0]
    rates = [event["values"].get("policy/learning_rate") for event in events(job, "metrics")]
    assert rates == [None, *(learning_rate_at(step, 6, job.config.optimizer) for step in (3, 5))]


def test_rounds_without_any_reward_warn_then_stop_and_break_nothing(model: Path, tmp_path: Path) -> None:
    data = prompts_folder(tmp_path / "data")
    rewards = [{"kind": "python", "function": f"{REWARD}:no_idea"}]
    job = online_job(tmp_path, model, data, method="ppo", steps=5, rewards=rewards, max_invalid_fraction=1.0, kl_coef=0.01)
    with pytest.raises(DivergedError, match="round 3: no response has a valid reward"):
        run_online(job)
    assert metric(job, "reward/invalid_share") == [1.0, 1.0]
    assert all(math.isfinite(float(value)) for event in events(job, "metrics") for value in event["values"].values())


def test_more_responses_without_a_reward_than_allowed_are_an_error_that_names_the_source(tmp_path: Path) -> None:
    log, config = EventLog(tmp_path / "events.jsonl"), OnlineConfig(max_invalid_fraction=0.5)
    nan = float("nan")
    check_rewards(0, Rewards([1.0, 1.0], {"judge": [1.0, 1.0]}), config, log)
    assert not log.path.exists()
    check_rewards(0, Rewards([1.0, None], {"judge": [1.0, nan]}, ("reward 'judge' is asked again: busy",)), config, log)
    assert "round 1: reward 'judge' is asked again: busy" in log.path.read_text()
    assert "round 1: 1 of 2 responses have no valid reward (reward 'judge' gave NaN for 1)" in log.path.read_text()
    with pytest.raises(DataError, match=r"round 1: 2 of 2 .*'judge' gave NaN for 1, none of \['judge'\] applies to 1.*=0.5"):
        check_rewards(0, Rewards([None, None], {"judge": [None, nan]}), config, log)
