"""RePULSe as online runs: a proposal finds bad responses, the policy says them less, and what must change nothing does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError

from data_processing.errors import DivergedError
from data_processing.schemas import read_table
from rlhf_core.recipes.online.job import OnlineJob
from rlhf_core.recipes.online.run import run_online
from rlhf_core.settings.online import OnlineConfig
from tests.online.runs import REWARD, events, final_weights, metric, online_job, prompts_folder, rollouts
from tests.tiny_models import tiny_model

slow = [pytest.mark.usefixtures("ray_local"), pytest.mark.slow]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


def job(folder: Path, model: Path, function: str = "vowels", **settings: Any) -> OnlineJob:
    """Four samples to each of four prompts, three tokens long."""
    data = prompts_folder(folder / "data", label=str(folder / "calls"))
    given = {
        "method": "repulse",
        "prompts_per_step": 4,
        "samples_per_prompt": 4,
        "updates_per_step": 1,
        "rollout__max_new_tokens": 3,
        "rewards": [{"kind": "python", "function": f"{REWARD}:{function}"}],
        "repulse": {"target_beta": -20.0, "alpha": 2.0, "proposal_learning_rate": 1e-2},
    }
    return online_job(folder, model, data, **{**given, **settings})


def proposals(run: OnlineJob) -> pa.Table:
    return pa.concat_tables([read_table("rollouts", path) for path in sorted((run.output / "proposals").glob("*.parquet"))])


def same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], atol: float = 0.0) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=0, atol=atol)


def proposal_weights(run: OnlineJob) -> dict[str, torch.Tensor]:
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    state: dict[str, torch.Tensor] = get_fp32_state_dict_from_zero_checkpoint(str(run.output / "proposal" / "zero"))
    return state


class TestRuns:
    """With real actors."""

    pytestmark = slow

    def test_the_proposal_finds_what_is_bad(self, model: Path, tmp_path: Path) -> None:
        size = {"steps": 12, "prompts_per_step": 8, "samples_per_prompt": 8, "rollout__max_new_tokens": 2}
        how = {"target_beta": -6.0, "alpha": 2.0, "proposal_learning_rate": 3e-3}
        run = job(tmp_path, model, keep_below=0.2, repulse=how, **size)
        run_online(run)
        found, own = metric(run, "proposal/reward"), metric(run, "reward/mean")
        # The better the policy becomes, the farther the proposal stays behind it.
        assert sum(own[-3:]) > sum(own[:3]) + 0.3 and sum(found[-3:]) < sum(own[-3:]) - 0.4
        assert all(1.0 <= count <= 8.0 + 1e-6 for count in metric(run, "proposal/effective_samples"))
        assert set(metric(run, "proposal/alpha_effective")) == {0.25}
        # Both start from the same weights, and draw otherwise all the same.
        assert metric(run, "proposal/kl_to_policy")[0] == pytest.approx(0.0, abs=1e-5)
        drawn, theirs = rollouts(run), proposals(run)
        assert len(drawn) == len(theirs) == 12 * 64
        assert drawn["response_ids"].slice(0, 64).to_pylist() != theirs["response_ids"].slice(0, 64).to_pylist()
        assert drawn["prompt_id"].to_pylist() == theirs["prompt_id"].to_pylist()
        bad = pq.read_table(run.output / "bad_samples.parquet").to_pylist()
        assert sum(row["times"] for row in bad) == sum(
            reward < 0.2 for table in (drawn, theirs) for reward in table["reward"].to_pylist()
        )
        assert {row["drawn_by"] for row in bad} == {"policy", "proposal"}
        assert len({(row["prompt_id"], row["response"]) for row in bad}) <= len(bad)

    def test_a_term_of_weight_0_leaves_the_policy_to_reinforce(self, model: Path, tmp_path: Path) -> None:
        plain = job(tmp_path / "plain", model, steps=3, method="reinforce", repulse={})
        other = job(tmp_path / "other", model, steps=3, repulse={"alpha": 0.0, "target_beta": -1.0})
        for run in (plain, other):
            run_online(run)
        assert rollouts(other).equals(rollouts(plain))
        same_weights(final_weights(plain), final_weights(other), atol=1e-6)

    def test_a_resumed_run_is_the_uninterrupted_one(self, model: Path, tmp_path: Path) -> None:
        """Both policies and what each drew; it breaks amid the update of the second round."""
        own = {"proposal_updates": 2, "first": "policy", "start_alpha": 0.5}
        settings = {"steps": 3, "checkpoint_every_steps": 1} | {f"repulse__{name}": value for name, value in own.items()}
        whole, broken = (job(tmp_path / name, model, "infinite_for_a_proposal", **settings) for name in ("whole", "broken"))
        (tmp_path / "whole" / "calls").write_text("xxxxxx")
        run_online(whole)
        with pytest.raises(DivergedError, match="gave inf"):
            run_online(broken)
        assert [line["done"] for line in events(broken, "progress")][-1] == 1
        run_online(broken)
        assert rollouts(broken).equals(rollouts(whole)) and proposals(broken).equals(proposals(whole))
        assert len(proposals(whole)) == 2 * len(rollouts(whole))
        same_weights(final_weights(whole), final_weights(broken))
        same_weights(proposal_weights(whole), proposal_weights(broken))
        assert metric(whole, "proposal/alpha_effective")[0] == pytest.approx(0.5 / 4)
        assert metric(whole, "proposal/alpha_effective")[-1] == pytest.approx(2.0 / 4)

    def test_no_cut_comes_between_the_samples_of_a_prompt(self, model: Path, tmp_path: Path) -> None:
        one, cut = job(tmp_path / "one", model), job(tmp_path / "cut", model, engine__world_size=2, engine__micro_batch_tokens=48)
        for run in (one, cut):
            run_online(run)
        for name in ("policy/loss", "proposal/loss", "policy/grad_norm", "proposal/grad_norm"):
            assert metric(cut, name) == pytest.approx(metric(one, name), abs=2e-5), name

    def test_the_policy_is_its_own_proposal(self, model: Path, tmp_path: Path) -> None:
        run = job(tmp_path, model, method="repulse_base", repulse={"target_beta": -20.0, "alpha": 2.0}, steps=4)
        run_online(run)
        assert not (run.output / "proposal").exists() and not (run.output / "proposals").exists()
        assert metric(run, "policy/grad_norm")[0] > 0

    def test_adapters_train_as_weights_do(self, model: Path, tmp_path: Path) -> None:
        run = job(tmp_path, model, lora={"rank": 4}, kl_coef=0.05, steps=2)
        run_online(run)
        assert max(metric(run, "logprob_gap/mean")) < 1e-5
        assert metric(run, "kl/sequence")[-1] > 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"samples_per_prompt": 1}, "samples_per_prompt=1 with method 'repulse'.*at least 2"),
        ({"async_steps": 1}, "async_steps=1 with method 'repulse': its sampler draws for two policies in turn"),
        ({"entropy_coef": 0.1}, "entropy_coef=0.1 with method 'repulse'"),
        ({"kl_place": "loss", "kl_estimate": "k3"}, "kl_place='loss' with method 'repulse'"),
        ({"rewards": [{"kind": "procedures", "normalise": "group"}]}, "normalised by group with method 'repulse'"),
        ({"repulse": {"start_target_beta": 1.0}}, "start_target_beta=1.0 with target_beta=-10.0: both need one sign"),
        ({"repulse": {"start_alpha": 1.0, "alpha": 0.0}}, "start_alpha=1.0 with alpha=0"),
    ],
)
def test_what_cannot_work_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        OnlineConfig.model_validate({"method": "repulse", **settings})


def test_values_go_by_equal_factors() -> None:
    config = OnlineConfig.model_validate(
        {
            "method": "repulse",
            "steps": 3,
            "repulse": {"alpha": 4.0, "start_alpha": 1.0, "target_beta": -1.0, "start_target_beta": -16.0},
        }
    )
    assert [config.at(step).repulse.alpha for step in range(3)] == pytest.approx([1.0, 2.0, 4.0])
    assert [config.at(step).repulse.target_beta for step in range(3)] == pytest.approx([-16.0, -4.0, -1.0])
