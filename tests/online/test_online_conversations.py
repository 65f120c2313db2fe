"""Online runs whose policy is answered between its turns: exact at every token, and what the environment breaks teaches nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from data_processing.errors import ConfigError, DataError
from flows.settings.layers import validate
from rlhf_core.objectives.advantages import discounted_returns, gae
from rlhf_core.recipes.online.run import run_online
from tests.online.runs import events, metric, online_job, prompts_folder, rollouts
from tests.rollout.talkative import talkative_model

MADE = "tests.environments.made"
ROUNDS = 2


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return talkative_model(tmp_path_factory.mktemp("model"))


def job_with(folder: Path, model: Path, name: str, **settings: Any) -> Any:
    environment = {"path": f"{MADE}:{name}", "options": {"replies": 2}, **settings.pop("environment", {})}
    values = {"rewards": [{"kind": "environment"}], "rollout__max_new_tokens": 24, "max_length_tokens": 160, "steps": ROUNDS}
    values |= {"optimizer__learning_rate": 1e-5, "engine__micro_batch_tokens": 1024, **settings}
    return online_job(folder, model, prompts_folder(folder / "data"), environment=environment, **values)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize(
    "settings", [{"method": "ppo", "gamma": 0.5, "gamma_by": "turn"}, {"method": "grpo", "async_steps": 1, "mini_batches": 2}]
)
def test_a_policy_learns_from_its_own_turns(settings: dict[str, Any], model: Path, tmp_path: Path) -> None:
    job = job_with(tmp_path, model, "Counts", **settings)
    run_online(job)
    # Trainer and sampler agree at every token that counts, behind replies too.
    assert max(metric(job, "logprob_gap/max")[:1]) < 1e-4
    # At first: paid by length, it soon never ends its turns.
    assert metric(job, "conversation/turns")[0] > 1.2 and metric(job, "conversation/echoes")[0] > 0.5
    assert metric(job, "conversation/reply_tokens")[0] > 1
    rows = rollouts(job).to_pylist()
    kept = [json.loads(row["trajectory"]) for row in rows]
    assert {turn["role"] for each in kept for turn in each["messages"]} == {"assistant", "user"}
    assert all(len(row["learnt"]) == row["length_tokens"] for row in rows)
    # Each turn earns its own; what the response is worth is all of it.
    earned = [sum(r for r in each["rewards"] if r is not None) for each in kept]
    for name in ("reward/mean", "reward/environment/earned/mean"):
        assert metric(job, name)[0] == pytest.approx(sum(earned[:64]) / 64)
    assert [row["reward"] for row in rows] == pytest.approx(earned)
    assert metric(job, "policy/grad_norm")[0] > 0


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_what_an_environment_breaks_is_invalid_and_stops_the_run_above_a_share(model: Path, tmp_path: Path) -> None:
    job = job_with(tmp_path / "goes-on", model, "Raises", method="reinforce", max_invalid_fraction=0.9)
    run_online(job)
    assert all(0.2 < share < 0.9 for share in metric(job, "reward/invalid_share"))
    assert all(share > 0.2 for share in metric(job, "conversation/ended_by_failed"))
    assert any("the environment failed in" in e["message"] and "no such tool" in e["message"] for e in events(job, "warning"))
    failed = [row for row in rollouts(job).to_pylist() if json.loads(row["trajectory"])["failure"]]
    assert failed and all(row["reward"] is None for row in failed)
    strict = job_with(tmp_path / "stops", model, "Raises", method="reinforce", max_invalid_fraction=0.1)
    with pytest.raises(DataError, match=r"the environment failed in \d+ of them, the first: KeyError"):
        run_online(strict)


def test_a_discount_by_turn_counts_turns() -> None:
    rewards = torch.tensor([[0.0, 0.0, 1.0, 0.0, 8.0]])
    mask, ends = torch.ones(1, 5), torch.tensor([[0.0, 1.0, 0.0, 1.0, 1.0]])
    discounts = torch.where(ends.bool(), 0.5, 1.0)
    assert discounted_returns(rewards, mask, discounts).tolist() == [[2.5, 2.5, 5.0, 4.0, 8.0]]
    advantages, returns = gae(rewards, torch.zeros(1, 5), mask, discounts, 1.0)
    assert advantages.tolist() == returns.tolist() == [[2.5, 2.5, 5.0, 4.0, 8.0]]
    flat = torch.full((1, 5), 0.5)
    assert discounted_returns(rewards, mask, flat).equal(discounted_returns(rewards, mask, 0.5))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rewards": [{"kind": "environment"}]}, "a reward of kind 'environment' without an environment: name its class"),
        ({"gamma_by": "turn"}, "gamma_by='turn' without an environment"),
        ({"environment": {"options": {"a": 1}}}, "environment.path is null, and its options or tool_parser are given"),
        ({"environment": {"path": "a:B", "max_turns": 0}}, "max_turns"),
    ],
)
def test_settings_of_turns_need_an_environment(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        validate({"online": settings})
