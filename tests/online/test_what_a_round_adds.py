"""What a round adds to plain sampling: prompts drawn again, a penalty for length, rewards of single tokens, a KL that is steered."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data_processing.errors import ConfigError, DivergedError
from rlhf_core.recipes.online.job import OnlineJob
from rlhf_core.recipes.online.kl_coefficient import KlCoefficient
from rlhf_core.recipes.online.metrics import flat_groups
from rlhf_core.recipes.online.rollouts import Rollouts
from rlhf_core.recipes.online.run import run_online
from rlhf_core.recipes.online.targets import compute_targets
from rlhf_core.recipes.prompts import Prompt
from rlhf_core.rewards.base import ScoredResponse
from rlhf_core.rewards.compose import ComposedReward, Rewards
from rlhf_core.rewards.overlong import overlong_penalty, with_penalties
from rlhf_core.rewards.python_function import PythonScorer
from rlhf_core.rewards.weighing import Weighing
from rlhf_core.rollout.base import Generation
from rlhf_core.settings.online import OnlineConfig
from tests.online.runs import REWARD, events, final_weights, metric, online_job, prompts_folder, rollouts
from tests.tiny_models import tiny_model


def rollouts_of(*generations: Generation) -> Rollouts:
    prompts = [Prompt(f"p{i}", [], None, [7, 8]) for i in range(len(generations))]
    responses = [ScoredResponse(p.id, [], None, p.ids, g.response_ids, "") for p, g in zip(prompts, generations, strict=True)]
    return Rollouts.of(prompts, list(generations), responses, seconds=1.0)


def test_only_what_the_model_drew_is_learnt() -> None:
    tool = Generation([4, 5, 6, 9], [-1.0, -2.0, -3.0, -4.0], "stop", learnt=[True, False, False, True])
    plain = Generation([4, 5, 6], [-5.0, -6.0, -7.0], "length")
    found = rollouts_of(tool, plain)
    assert found.mask.tolist() == [[1, 1, 0], [1, 1, 1]]
    assert found.sampler_logprobs.tolist() == [[-1, -4, 0], [-5, -6, -7]]
    assert found.rows[0].is_target == [False, False, True, False, False, True]
    # What a tool's answer earns belongs to the token that called it.
    assert found.at_learnt_tokens([[1.0, 10.0, 100.0, 1000.0], None]).tolist() == [[111, 1000, 0], [0, 0, 0]]


def test_groups_that_teach_nothing_are_replaced_in_their_place() -> None:
    assert flat_groups([1.0, 1.0, 0.0, 1.0, None, 2.0, None, None], 2) == [0, 2, 3]
    first, second = Generation([4], [-1.0], "stop"), Generation([5, 6], [-1.0, -2.0], "stop")
    whole, others = rollouts_of(first, first, first, first), rollouts_of(second, second)
    merged = whole.with_rows([2, 3], others)
    assert [g.response_ids for g in merged.generations] == [[4], [4], [5, 6], [5, 6]]
    assert merged.mask.sum(1).tolist() == [1, 1, 2, 2]
    assert (merged.n_drawn, merged.seconds) == (6, 2.0)
    rewards = Rewards([1.0, 1.0, 0.0, 0.0], {"a": [1.0, 1.0, 0.0, 0.0]}, metrics={"a/x": [1.0] * 4})
    theirs = Rewards([2.0, None], {"a": [2.0, None]}, ("asked",), tokens=[None, [0.5, 0.5]])
    found = rewards.with_rows([2, 3], theirs)
    assert (found.total, found.by_source) == ([1.0, 1.0, 2.0, None], {"a": [1.0, 1.0, 2.0, None]})
    assert found.metrics == {"a/x": [1.0, 1.0, None, None]}
    assert (found.tokens, found.asked_again) == ([None, None, None, [0.5, 0.5]], ("asked",))


@pytest.mark.parametrize(("length", "expected"), [(0, 0.0), (80, 0.0), (90, -1.0), (100, -2.0), (120, -2.0)])
def test_long_answers_pay_by_degrees(length: int, expected: float) -> None:
    assert overlong_penalty(length, 100, 20, 2.0) == expected


def test_the_penalty_is_a_part_of_its_own_and_leaves_invalid_answers_invalid() -> None:
    config = OnlineConfig(method="dapo", rollout={"max_new_tokens": 100})
    found = with_penalties(Rewards([1.0, None], {"a": [1.0, None]}), [100, 100], config)
    assert found.total == [0.0, None]
    assert found.by_source["overlong_penalty"] == [-1.0, -1.0]
    untouched = Rewards([1.0], {})
    assert with_penalties(untouched, [100], OnlineConfig()) is untouched


def test_rewards_of_tokens_come_on_top_of_the_score_where_they_are_earned() -> None:
    mask = torch.tensor([[1.0, 1, 1], [1, 1, 0]])
    tokens = torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 9.0]])
    config = OnlineConfig(method="reinforce", kl_coef=0.0, samples_per_prompt=1)
    found = compute_targets(config, [1.0, None], mask=mask, kl_coef=0.0, token_rewards=tokens)
    torch.testing.assert_close(found.token_rewards, torch.tensor([[0.1, 0.2, 1.3], [0, 0, 0]]))
    torch.testing.assert_close(found.advantages[0], torch.tensor([1.6, 1.5, 1.3]))


def responses(*lengths: int) -> list[ScoredResponse]:
    return [ScoredResponse("p", [{"role": "user", "content": "?"}], None, [1], [5] * length, "text") for length in lengths]


def test_a_function_may_reward_tokens() -> None:
    reward = ComposedReward(
        [(PythonScorer(f"{REWARD}:first_token"), Weighing(2.0)), (PythonScorer(f"{REWARD}:zero"), Weighing(1.0))]
    )
    found = reward.score(responses(3, 2))
    assert found.total == [0.0, 0.0]
    assert found.tokens == [[2.0, 0.0, 0.0], [2.0, 0.0]]


def test_the_coefficient_follows_the_kl() -> None:
    config = OnlineConfig(kl_coef=0.1, adaptive_kl={"target_nats": 2.0, "horizon_responses": 64})
    kl = KlCoefficient(config)  # 8 x 4 responses a round
    assert kl.follow({"kl/sequence": 2.2}) == {"kl/coef": 0.1}
    assert kl.value == pytest.approx(0.1 * (1 + 0.1 / 2))
    after = kl.value
    kl.follow({"kl/sequence": 200.0})
    assert kl.value == pytest.approx(after * (1 + 0.2 / 2)), "an error counts as 20% at most"
    kl.follow({"kl/sequence": 0.0})
    assert kl.value == pytest.approx(after * 1.1 * (1 - 0.2 / 2))
    again = KlCoefficient(config)
    again.restore(kl.state())
    assert again.value == kl.value
    fixed = KlCoefficient(OnlineConfig(kl_coef=0.1))
    assert (fixed.follow({"kl/sequence": 200.0}), fixed.value) == ({"kl/coef": 0.1}, 0.1)


def dapo_job(folder: Path, model: Path) -> OnlineJob:
    settings = {
        "method": "dapo",
        "steps": 4,
        "prompts_per_step": 3,
        "samples_per_prompt": 2,
        "updates_per_step": 1,
        "rewards": [{"kind": "python", "function": f"{REWARD}:flat_for_some", "normalise": "running", "final_weight": 2.0}],
        "overlong_penalty": {"buffer_tokens": 2},
        "checkpoint_every_steps": 1,
        "async_steps": 2,
        # Two rounds are far for a tiny model that learns fast, and how far is not what is looked at.
        "rollout__max_logprob_gap": 5.0,
    }
    return online_job(folder, model, prompts_folder(folder / "data", count=12, label=str(folder / "calls")), **settings)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_flat_groups_are_drawn_again_and_a_resumed_run_draws_the_same(tmp_path: Path) -> None:
    model = tiny_model(tmp_path)
    whole = dapo_job(tmp_path / "whole", model)
    (tmp_path / "whole" / "calls").write_text("x" * 100)
    run_online(whole)
    assert max(metric(whole, "drawn_share")) > 1.0
    assert min(metric(whole, "reward/overlong_penalty/mean")) < 0.0
    broken = dapo_job(tmp_path / "broken", model)
    with pytest.raises(DivergedError, match="gave inf"):
        run_online(broken)
    assert (broken.resume / "bad_rollouts.parquet").is_file(), "also where it broke among the refills"
    run_online(broken)
    begun = [line["done"] for line in events(broken, "progress") if line["message"].startswith("sampling")]
    assert begun[1] > 0, "it went on from a checkpoint"
    assert rollouts(broken)["response_ids"].to_pylist() == rollouts(whole)["response_ids"].to_pylist()
    expected = final_weights(whole)
    assert all(value.equal(expected[name]) for name, value in final_weights(broken).items())


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_a_policy_comes_closer_to_its_teacher_on_what_it_says_itself(tmp_path: Path) -> None:
    model, teacher = tiny_model(tmp_path / "model"), tiny_model(tmp_path / "teacher", seed=7)
    data = prompts_folder(tmp_path / "data")
    job = replace(online_job(tmp_path / "run", model, data, method="opd", steps=10, rewards=[]), teacher=teacher)
    run_online(job)
    found = metric(job, "teacher_kl/token")
    assert found[-1] < 0.7 * found[0]
    assert min(found) > -0.01
    with pytest.raises(ConfigError, match="needs a teacher, and this run has none"):
        run_online(replace(job, teacher=None))
