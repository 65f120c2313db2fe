"""What a round aims at, by hand: where the KL goes, what advantages are, which rows an update sees, when a run stops."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from data_processing.errors import DivergedError
from rlhf_core.events import EventLog
from rlhf_core.recipes.online.alarms import Alarms, conditions
from rlhf_core.recipes.online.rollouts import mini_batch_plan
from rlhf_core.recipes.online.targets import Targets, compute_targets
from rlhf_core.recipes.prompts import Prompt
from rlhf_core.recipes.row_order import RowOrder
from rlhf_core.settings.online import OnlineConfig
from rlhf_core.settings.training import OrderSettings

MASK = torch.tensor([[1.0, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]])
LOGPROBS = -torch.tensor([[1.0, 2, 3], [4, 9, 9], [5, 6, 9], [7, 8, 9]])
REFERENCE = LOGPROBS - 0.5
SCORES = [1.0, 3.0, 2.0, 2.0]


def targets(method: str, scores: Sequence[float | None] = SCORES, **settings: object) -> Targets:
    config = OnlineConfig.model_validate({"method": method, "prompts_per_step": 2, "samples_per_prompt": 2, **settings})
    return compute_targets(
        config,
        scores,
        mask=MASK,
        kl_coef=config.value("kl_coef"),
        logprobs=LOGPROBS,
        reference=REFERENCE,
        values=torch.zeros(4, 3) if config.has_critic else None,
    )


def test_ppo_pays_kl_on_every_token_and_the_score_on_the_last() -> None:
    rewards = targets("ppo", kl_coef=0.1).token_rewards
    expected = [[-0.05, -0.05, 0.95], [2.95, 0, 0], [-0.05, 1.95, 0], [-0.05, -0.05, 1.95]]
    torch.testing.assert_close(rewards, torch.tensor(expected))


def test_ppo_advantages_are_white_and_returns_are_not() -> None:
    result = targets("ppo", kl_coef=0.0, critic={"gae_lambda": 1.0})
    valid = MASK.bool()
    assert result.returns is not None
    # Values are 0, gamma and lambda 1: the return of every token is the score.
    torch.testing.assert_close(result.returns, torch.tensor(SCORES)[:, None] * MASK)
    assert abs(float(result.advantages[valid].mean())) < 1e-6
    assert abs(float(result.advantages[valid].var(correction=0)) - 1) < 1e-5
    assert not result.advantages[~valid].any()


def test_grpo_compares_within_prompts_and_leaves_the_kl_to_the_loss() -> None:
    result = targets("grpo", kl_coef=0.1)
    unit = 1 / math.sqrt(2)
    torch.testing.assert_close(result.advantages, torch.tensor([-unit, unit, 0, 0])[:, None] * MASK)
    torch.testing.assert_close(result.token_rewards.sum(1), torch.tensor(SCORES))
    assert result.returns is None


def test_a_response_without_a_reward_counts_nowhere_in_ppo() -> None:
    settings = {"kl_coef": 0.1, "critic": {"gae_lambda": 0.9}}
    found = targets("ppo", [1.0, None, 2.0, 2.0], **settings)
    others = [0, 2, 3]
    config = OnlineConfig.model_validate({"method": "ppo", "prompts_per_step": 3, "samples_per_prompt": 1, **settings})
    alone = compute_targets(
        config,
        [1.0, 2.0, 2.0],
        mask=MASK[others],
        kl_coef=0.1,
        logprobs=LOGPROBS[others],
        reference=REFERENCE[others],
        values=torch.zeros(3, 3),
    )
    assert found.returns is not None and alone.returns is not None
    for got, expected in [(found.advantages, alone.advantages), (found.returns, alone.returns)]:
        torch.testing.assert_close(got[others], expected)
        assert not got[1].any()


@pytest.mark.parametrize("method", ["ppo", "grpo"])
@pytest.mark.parametrize("scores", [[None] * 4, [None, None, 1.0, 2.0], [None, 3.0, None, None]])
def test_groups_without_rewards_teach_nothing_and_stay_finite(method: str, scores: list[float | None]) -> None:
    result = targets(method, scores, kl_coef=0.0)
    valid = torch.tensor([score is not None for score in scores])
    assert result.advantages.isfinite().all()
    assert not result.advantages[~valid].any()
    if method == "grpo":
        # One sample has nothing to be compared with.
        assert result.advantages[valid].any() == (valid.view(2, 2).all(1).any())


def test_score_clip_bounds_what_advantages_see() -> None:
    torch.testing.assert_close(targets("grpo", score_clip=2.5).token_rewards.sum(1), torch.tensor([1.0, 2.5, 2.0, 2.0]))


def test_every_prompt_comes_exactly_once_an_epoch() -> None:
    prompts = [Prompt(str(i), [], None, [i]) for i in range(7)]
    stream = RowOrder(OrderSettings(), prompts, 5, n_seen=21)
    seen = [prompts[i].id for step in range(7) for i in stream.at(3 * step, 3)]
    for epoch in range(3):
        assert Counter(seen[7 * epoch : 7 * epoch + 7]) == Counter(p.id for p in prompts)
    assert seen[:7] != seen[7:14]
    other = RowOrder(OrderSettings(), prompts, 6, n_seen=21)
    assert seen != [prompts[i].id for step in range(7) for i in other.at(3 * step, 3)]


@pytest.mark.parametrize(("passes", "mini_batches"), [(1, 1), (2, 1), (1, 4), (3, 2)])
def test_every_pass_uses_every_row_once(passes: int, mini_batches: int) -> None:
    plan = mini_batch_plan(8, 2, passes=passes, mini_batches=mini_batches, seed=0, step=3)
    assert [len(rows) for rows in plan] == [8 // mini_batches] * (passes * mini_batches)
    for k in range(passes):
        rows = [i for batch in plan[k * mini_batches : (k + 1) * mini_batches] for i in batch]
        assert sorted(rows) == list(range(8))
        # Whole groups of two, as mini-batches of two rows or more hold whole groups.
        assert all(rows[i + 1] == rows[i] + 1 for i in range(0, 8, 2))


def test_groups_that_do_not_fit_into_mini_batches_are_cut() -> None:
    plan = mini_batch_plan(8, 4, passes=1, mini_batches=4, seed=0, step=0)
    assert [len(rows) for rows in plan] == [2, 2, 2, 2]
    assert sorted(i for rows in plan for i in rows) == list(range(8))
    assert plan != mini_batch_plan(8, 4, passes=1, mini_batches=4, seed=0, step=1)


GATES = {
    "min_effective_samples": 1.5,
    "max_flat_fraction": 0.8,
    "max_mismatch_kl_nats": 0.1,
    "min_entropy_nats": 0.05,
    "max_length_growth": 2.0,
}


@pytest.mark.parametrize(
    ("metrics", "name"),
    [
        ({"truncated_share": 1.0}, "responses were cut"),
        ({"reward/invalid_share": 1.0}, "no response has a valid reward"),
        ({"zero_variance_share": 1.0}, "rewards of each prompt are equal"),
        ({"policy/grad_norm": 0.0}, "gradient is exactly 0"),
        ({"zero_variance_share": 0.9}, "all rewards of 90% of the prompts each are equal"),
        (
            {"proposal/effective_samples": 1.2},
            "of 4 samples of the proposal to a prompt 1.20 count on average, fewer than gates.min_",
        ),
        ({"mismatch_kl": 0.3}, "0.3 nats a token from what was sampled, more than gates.max_mismatch_kl_nats=0.1"),
        ({"sampled_entropy": 0.01}, "entropy is 0.01 nats a token, less than gates.min_entropy_nats=0.05"),
        ({"length_growth": 2.5}, "2.50 times as long as at first, more than gates.max_length_growth=2"),
    ],
)
def test_rounds_that_teach_nothing_warn_then_stop(tmp_path: Path, metrics: dict[str, float], name: str) -> None:
    healthy = {
        "truncated_share": 0.1,
        "reward/invalid_share": 0.0,
        "zero_variance_share": 0.5,
        "reward/mean": 0.3,
        "reward/std": 0.1,
        "policy/grad_norm": 0.7,
        "mismatch_kl": 0.001,
        "sampled_entropy": 1.0,
        "length_growth": 1.0,
    }
    log = EventLog(tmp_path / "events.jsonl")
    config = OnlineConfig(gates=GATES)
    alarms = Alarms(log, config.gates)
    for step, bad in enumerate([True, True, False, True, True]):
        alarms.check(step, conditions(config, healthy | metrics if bad else healthy))
    assert log.path.read_text().count('"warning"') == 4
    with pytest.raises(DivergedError, match=f"round 6: .*{name}"):
        alarms.check(5, conditions(config, healthy | metrics))


def test_lengths_grow_from_those_of_the_first_round_also_after_a_resume(tmp_path: Path) -> None:
    before = Alarms(EventLog(tmp_path / "events.jsonl"), OnlineConfig().gates)
    assert before.growth({"response_tokens/mean": 20.0}) == 1.0
    after = Alarms(before.events, before.gates)
    after.restore(before.state())
    assert after.growth({"response_tokens/mean": 50.0}) == 2.5


def test_patience_is_a_setting(tmp_path: Path) -> None:
    alarms = Alarms(EventLog(tmp_path / "events.jsonl"), OnlineConfig(gates={"patience_rounds": 1}).gates)
    with pytest.raises(DivergedError, match="held 1 rounds in a row"):
        alarms.check(0, {"any": "it is broken."})
