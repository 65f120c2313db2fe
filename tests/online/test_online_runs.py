"""Whole online runs on tiny models, with real actors: rewards rise, runs resume exactly, nothing is repeated or lost."""

import json
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from data_processing.errors import ConfigError, DataError, DivergedError, PreemptedError
from data_processing.schemas import read_table
from rlhf_core.recipes.online.checkpoints import check_same_run
from rlhf_core.recipes.online.job import OnlineJob
from rlhf_core.recipes.online.run import run_online
from rlhf_core.recipes.stop import STOP_FILE_NAME
from tests.online.runs import REWARD, events, final_weights, metric, online_job, prompts_folder, rollouts
from tests.tiny_models import alibi_model, tiny_model

pytestmark = [pytest.mark.usefixtures("ray_local"), pytest.mark.slow]

PPO_ROUNDS = 12


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


def ppo_job(folder: Path, model: Path) -> OnlineJob:
    """PPO that meets an infinite reward in the third round where `folder/calls` does not count past it."""
    data = prompts_folder(folder / "data", label=str(folder / "calls"))
    rewards = [{"kind": "python", "function": f"{REWARD}:infinite_once_trained"}]
    return online_job(
        folder, model, data, method="ppo", steps=PPO_ROUNDS, rewards=rewards, checkpoint_every_steps=2, kl_coef=1e-6
    )


@pytest.fixture(scope="module")
def ppo_run(tmp_path_factory: pytest.TempPathFactory, model: Path, ray_local: None) -> OnlineJob:
    folder = tmp_path_factory.mktemp("ppo")
    (folder / "calls").write_text("xxx")
    job = ppo_job(folder, model)
    run_online(job)
    return job


def test_ppo_raises_the_reward_in_a_few_rounds(ppo_run: OnlineJob) -> None:
    rewards = metric(ppo_run, "reward/mean")
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.15
    # The critic starts at V = 0 and comes to foresee what responses earn.
    assert metric(ppo_run, "critic/value_mean")[0] == 0.0
    assert metric(ppo_run, "critic/loss")[-1] < metric(ppo_run, "critic/loss")[0] / 2


def test_a_model_that_packing_would_mix_up_is_padded_by_every_actor_and_one_line_says_so(tmp_path: Path) -> None:
    job = online_job(tmp_path, alibi_model(tmp_path), prompts_folder(tmp_path / "data"), method="grpo", kl_coef=0.1)
    run_online(job)
    [warning] = [event["message"] for event in events(job, "warning") if "packed" in event["message"]]
    assert "batches are padded" in warning
    # Sampler, policy and reference agree: each sees the rows as they are alone.
    assert max(metric(job, "logprob_gap/max")) < 1e-4
    assert metric(job, "kl/sequence")[0] == pytest.approx(0.0, abs=1e-4)


def test_every_round_reports_what_it_did(ppo_run: OnlineJob) -> None:
    reported = set(events(ppo_run, "metrics")[0]["values"])
    expected = {
        "reward/mean", "reward/std", "reward/infinite_once_trained/mean", "kl/token", "kl/sequence", "sampled_entropy",
        "policy/clip_fraction", "policy/approx_kl", "policy/ratio_mean", "policy/grad_norm", "policy/learning_rate",
        "logprob_gap/mean", "logprob_gap/max", "logprob_gap/ratio", "response_tokens/mean", "truncated_share",
        "zero_variance_share", "policy/seconds", "critic/loss", "critic/explained_variance", "critic/grad_norm", "seconds/generate", "seconds/wait",
        "seconds/score", "seconds/update", "seconds/sync", "seconds/round", "generated_tokens_per_s",
    }  # fmt: skip
    assert expected <= reported
    assert list(dict.fromkeys(line["done"] for line in events(ppo_run, "progress"))) == list(range(PPO_ROUNDS + 1))
    assert max(metric(ppo_run, "logprob_gap/mean")) < 1e-5
    assert metric(ppo_run, "kl/sequence")[0] == 0.0 < metric(ppo_run, "kl/sequence")[-1]


def test_prompts_come_once_an_epoch_and_samples_carry_their_weights(ppo_run: OnlineJob) -> None:
    table = rollouts(ppo_run)
    assert len(table) == PPO_ROUNDS * 64
    rows = table.to_pylist()
    assert all(row["weight_version"] == row["step"] - 1 for row in rows)
    assert all(len(row["response_ids"]) == len(row["logprobs"]) == row["length_tokens"] for row in rows)
    # 12 rounds of 8 prompts are 16 epochs of 6, and every prompt gets 8 samples each time.
    assert Counter(row["prompt_id"] for row in rows) == Counter({f"p{i}": 16 * 8 for i in range(6)})
    assert len({(row["step"], row["prompt_id"], row["sample"]) for row in rows}) == len(rows)


def test_an_infinite_reward_stops_the_run_and_the_resumed_run_is_the_uninterrupted_one(
    ppo_run: OnlineJob, model: Path, tmp_path: Path
) -> None:
    job = ppo_job(tmp_path, model)
    with pytest.raises(DivergedError, match=r"reward 'infinite_once_trained' gave inf for prompt p\d"):
        run_online(job)
    kept = read_table("rollouts", job.resume / "bad_rollouts.parquet")
    assert set(kept["step"].to_pylist()) == {3}
    run_online(job)
    assert [line["done"] for line in events(job, "progress") if line["message"].startswith("sampling")] == [0, 2]
    assert rollouts(job).equals(rollouts(ppo_run))
    expected, weights = final_weights(ppo_run), final_weights(job)
    assert expected.keys() == weights.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, rtol=0, atol=0)
    # The critic too: what it said of the last round hangs on all rounds before.
    assert metric(job, "critic/value_mean")[-1] == metric(ppo_run, "critic/value_mean")[-1]


def test_a_checkpoint_of_other_settings_or_prompts_is_not_gone_on_from(ppo_run: OnlineJob) -> None:
    [newest, _] = sorted((ppo_run.resume / "policy").iterdir(), reverse=True)
    state = json.loads((newest / "state.json").read_text())["caller"]
    check_same_run(state, state, newest)
    with pytest.raises(ConfigError, match=r"other values of \['kl_coef'\]"):
        check_same_run(state, {**state, "settings": {**state["settings"], "kl_coef": 0.5}}, newest)
    with pytest.raises(ConfigError, match=r"made by another version of alignflow \(format 1, this one reads 5\)"):
        check_same_run({name: value for name, value in state.items() if name != "format"}, state, newest)
    with pytest.raises(DataError, match="other prompts"):
        check_same_run(state, {**state, "prompts_sha256": "another"}, newest)


def test_grpo_on_two_ranks_learns_across_a_preemption(model: Path, tmp_path: Path) -> None:
    job = online_job(
        tmp_path,
        model,
        prompts_folder(tmp_path / "data"),
        method="grpo",
        steps=PPO_ROUNDS,
        engine__world_size=2,
        mini_batches=2,
        kl_coef=1e-6,
    )
    stopper = threading.Thread(target=_stop_after, args=(job, 4))
    stopper.start()
    with pytest.raises(PreemptedError, match="a checkpoint is saved"):
        run_online(job)
    stopper.join()
    done = events(job, "progress")[-1]["done"]
    assert 4 <= done < PPO_ROUNDS
    (job.resume / STOP_FILE_NAME).unlink()
    run_online(job)
    assert [event["step"] for event in events(job, "metrics")] == list(range(1, PPO_ROUNDS + 1))
    rewards = metric(job, "reward/mean")
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.15
    assert max(metric(job, "logprob_gap/mean")) < 1e-5
    # The reference is one process, but cuts its rows as the two ranks do.
    assert metric(job, "kl/sequence")[0] == 0.0 < metric(job, "kl/sequence")[-1]


def test_at_learning_rate_0_nothing_moves_and_every_ratio_is_1(tmp_path: Path) -> None:
    model = tiny_model(tmp_path, "qwen3")
    job = online_job(
        tmp_path,
        model,
        prompts_folder(tmp_path / "data"),
        method="grpo",
        steps=2,
        optimizer__learning_rate=0.0,
        rollout__temperature=0.6,
        lora={"rank": 4},
        rewards=[
            {"kind": "python", "function": f"{REWARD}:vowels", "weight": 0.5},
            {"kind": "python", "function": f"{REWARD}:constant", "weight": -1.0},
        ],
    )
    run_online(job)
    # One mini-batch: training packs the rows as scoring did, so the ratio is exactly 1, not nearly.
    assert metric(job, "policy/approx_kl") == [0.0, 0.0]
    assert metric(job, "policy/ratio_mean") == pytest.approx([1.0, 1.0], abs=1e-6)
    assert not [name for event in events(job, "metrics") for name in event["values"] if name.startswith("kl/")]
    assert all(0.99 < ratio < 1.01 for ratio in metric(job, "logprob_gap/ratio"))
    for event in events(job, "metrics"):
        values = event["values"]
        assert values["reward/mean"] == pytest.approx(0.5 * values["reward/vowels/mean"] - values["reward/constant/mean"])
        assert values["reward/constant/mean"] == 0.5


def _stop_after(job: OnlineJob, rounds: int) -> None:
    """Ask the run to stop once it has reported `rounds` rounds."""
    while not job.events.path.exists() or len(events(job, "metrics")) < rounds:
        time.sleep(0.02)
    (job.resume / STOP_FILE_NAME).touch()
