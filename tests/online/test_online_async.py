"""Rounds that are sampled one ahead: nothing changes but the age of the weights, and nothing is lost when a run is resumed."""

from pathlib import Path

import pytest

from data_processing.errors import DivergedError
from rlhf_core.recipes.online.job import OnlineJob
from rlhf_core.recipes.online.run import run_online
from tests.online.runs import REWARD, events, final_weights, metric, online_job, prompts_folder, rollouts
from tests.tiny_models import tiny_model

pytestmark = [pytest.mark.usefixtures("ray_local"), pytest.mark.slow]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


def test_at_learning_rate_0_sampling_ahead_changes_nothing(model: Path, tmp_path: Path) -> None:
    jobs = []
    for async_steps in (0, 1):
        folder = tmp_path / str(async_steps)
        job = online_job(
            folder,
            model,
            prompts_folder(folder / "data"),
            method="grpo",
            steps=3,
            updates_per_step=1,
            async_steps=async_steps,
            rollout_correction="none",
            optimizer__learning_rate=0.0,
        )
        run_online(job)
        jobs.append(job)
    in_turn, ahead = jobs
    for name in ("policy/loss", "policy/grad_norm", "logprob_gap/mean", "reward/mean"):
        assert metric(ahead, name) == metric(in_turn, name)
    columns = [name for name in rollouts(ahead).column_names if name != "weight_version"]
    assert rollouts(ahead).select(columns).equals(rollouts(in_turn).select(columns))
    assert rollouts(in_turn)["weight_version"].unique().to_pylist() == [0, 1, 2]
    assert metric(in_turn, "staleness") == [0.0, 0.0, 0.0]


def ahead_job(folder: Path, model: Path) -> OnlineJob:
    """A run that meets an infinite reward in the third round where `folder/calls` does not count past it."""
    data = prompts_folder(folder / "data", label=str(folder / "calls"))
    rewards = [{"kind": "python", "function": f"{REWARD}:infinite_once_trained"}]
    return online_job(
        folder,
        model,
        data,
        method="grpo",
        steps=5,
        rewards=rewards,
        checkpoint_every_steps=2,
        async_steps=1,
        optimizer__learning_rate=1e-3,
    )


def test_a_resumed_run_goes_on_with_the_round_that_was_in_flight(model: Path, tmp_path: Path) -> None:
    whole, broken = ahead_job(tmp_path / "whole", model), ahead_job(tmp_path / "broken", model)
    (tmp_path / "whole" / "calls").write_text("xxx")
    run_online(whole)
    # The first round has nothing to be ahead of; each later one is drawn with weights that lack one round.
    steps = {(row["step"], row["weight_version"]) for row in rollouts(whole).to_pylist()}
    assert steps == {(1, 0), (2, 0), (3, 1), (4, 2), (5, 3)}
    assert metric(whole, "staleness") == [0.0, 1.0, 1.0, 1.0, 1.0]
    # Stale weights show as a gap that the corrections weigh; the first round has none.
    assert metric(whole, "logprob_gap/mean")[0] < 1e-5 < metric(whole, "logprob_gap/mean")[1]
    assert metric(whole, "policy/correction_weight")[0] == pytest.approx(1.0, abs=1e-4)
    with pytest.raises(DivergedError, match="gave inf"):
        run_online(broken)
    run_online(broken)
    assert [line["done"] for line in events(broken, "progress") if line["message"].startswith("sampling")] == [0, 2]
    assert rollouts(broken).equals(rollouts(whole))
    expected, weights = final_weights(whole), final_weights(broken)
    assert all(weights[name].equal(tensor) for name, tensor in expected.items())


def test_a_policy_too_far_from_its_sampler_stops_the_run_before_it_is_kept(model: Path, tmp_path: Path) -> None:
    data = prompts_folder(tmp_path / "data")
    job = online_job(tmp_path, model, data, method="grpo", steps=4, async_steps=1, checkpoint_every_steps=1)
    with pytest.raises(DivergedError, match=r"round 2: sampler and trainer log-probs differ by .* rollout.max_logprob_gap=0.2"):
        run_online(job)
    assert [folder.name for folder in (job.resume / "policy").iterdir()] == ["step-000001"]
    assert (job.resume / "bad_rollouts.parquet").is_file()
    assert not list(job.output.iterdir())


def test_a_round_that_teaches_nothing_leaves_the_weights_alone(model: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    rewards = [{"kind": "python", "function": f"{REWARD}:constant"}]
    job = online_job(tmp_path, model, prompts_folder(tmp_path / "data"), method="grpo", steps=2, rewards=rewards)
    run_online(job)
    assert metric(job, "policy/skipped_share") == [1.0, 1.0]
    assert metric(job, "policy/skipped_steps") == [2, 2]
    assert metric(job, "policy/grad_norm") == [0.0, 0.0]
    # Whether the sampler draws from the policy is looked at all the same.
    assert max(metric(job, "logprob_gap/mean")) < 1e-5
    assert {event["message"].split(": ", 1)[1][:26] for event in events(job, "warning")} >= {"all rewards of each prompt"}
    before = AutoModelForCausalLM.from_pretrained(model).state_dict()
    trained = final_weights(job)
    assert all(tensor.equal(before[name.removeprefix("hf.")]) for name, tensor in trained.items())
