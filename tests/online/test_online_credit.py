"""Credit in online runs: beta 0 is the outcome bit for bit, units earn at their tokens, and the run tells what it spread."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from data_processing.errors import ConfigError
from flows.settings.layers import validate
from rlhf_core.credit.base import Credited, Round
from rlhf_core.recipes.online.run import run_online
from rlhf_core.settings.online import OnlineConfig
from tests.online.runs import REWARD, final_weights, metric, online_job, prompts_folder, rollouts
from tests.tiny_models import tiny_model

HERE = "tests.online.test_online_credit"
BY_ENTROPY = {
    "kind": "drca",
    "unit_extraction": "entropy",
    "entropy_threshold_nats": 0.0,
    "max_units": 3,
    "counterfactual": "mask",
}


class HalfAtFirst:
    """Half of the reward at the first token."""

    def __init__(self, share: float) -> None:
        self.share = share

    def __call__(self, given: Round) -> Credited:
        total = given.rewards.total
        tokens = [
            None if worth is None else [self.share * worth, *[0.0] * (len(response.response_ids) - 1)]
            for worth, response in zip(total, given.responses, strict=True)
        ]
        left = [None if worth is None else (1 - self.share) * worth for worth in total]
        return Credited(left, tokens, metrics={"share": self.share})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_differences_are_spread_over_units_and_beta_0_is_the_outcome(model: Path, tmp_path: Path) -> None:
    data, tokenizer = prompts_folder(tmp_path / "data"), AutoTokenizer.from_pretrained(model)
    settings: dict[str, Any] = {"method": "reinforce_pp", "updates_per_step": 1, "steps": 1}
    jobs = {
        name: online_job(tmp_path / name, model, data, credit=credit, **settings)
        for name, credit in (("outcome", "outcome"), ("none", {**BY_ENTROPY, "beta": 0.0}), ("drca", BY_ENTROPY))
    }
    for job in jobs.values():
        run_online(job)
    outcome, none = final_weights(jobs["outcome"]), final_weights(jobs["none"])
    assert all(none[name].equal(weights) for name, weights in outcome.items())
    assert any(not own.equal(outcome[name]) for name, own in final_weights(jobs["drca"]).items())

    job = jobs["drca"]
    rows = rollouts(job).to_pylist()
    assert all(row["units"] for row in rows) and max(len(row["units"]) for row in rows) == 3
    for row in rows:
        ends = [unit["end"] for unit in row["units"]]
        assert [unit["start"] for unit in row["units"]] == [0, *ends[:-1]] and ends[-1] <= row["length_tokens"]
    # What is told as the reward is the outcome; the token rewards sum to the shares.
    assert metric(job, "reward/mean")[0] == pytest.approx(sum(row["reward"] for row in rows) / len(rows))
    differences = [math.fsum(unit["credit"] for unit in row["units"]) for row in rows]
    assert metric(job, "credit/sum_of_differences")[0] == pytest.approx(sum(differences) / len(rows))
    earned = [0.8 * total + 0.2 * row["reward"] for total, row in zip(differences, rows, strict=True)]
    assert metric(job, "credit/sum_of_rewards")[0] == pytest.approx(sum(earned) / len(rows))
    assert metric(job, "credit/fallback_share") == [0.0] and metric(job, "credit/extra_token_ratio")[0] > 1
    assert rollouts(jobs["outcome"]).column("units").null_count == len(rows)

    shown = json.loads((job.output / "credit.json").read_text())
    texts = {tokenizer.decode(row["response_ids"], skip_special_tokens=True) for row in rows}
    assert len(shown) == 6 and {"".join(part["text"] for part in each["parts"]) for each in shown} <= texts
    assert {part["credit"] for each in shown for part in each["parts"] if part["credit"] is not None} <= {
        unit["credit"] for row in rows for unit in row["units"]
    }
    assert not (jobs["outcome"].output / "credit.json").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_what_long_answers_pay_is_no_difference_of_a_unit(model: Path, tmp_path: Path) -> None:
    constant = [{"kind": "python", "function": f"{REWARD}:constant"}]
    pays = {"factor": 1.0, "buffer_tokens": 8}
    settings: dict[str, Any] = {"method": "reinforce_pp", "updates_per_step": 1, "steps": 1, "overlong_penalty": pays}
    job = online_job(tmp_path, model, prompts_folder(tmp_path / "data"), credit=BY_ENTROPY, rewards=constant, **settings)
    run_online(job)
    rows = rollouts(job).to_pylist()
    assert any(row["reward"] < 0.5 for row in rows), "some are long enough to pay"
    assert {unit["credit"] for row in rows for unit in row["units"]} == {0.0}


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_credit_of_ones_own_is_a_class(model: Path, tmp_path: Path) -> None:
    credit = {"kind": "own", "by": f"{HERE}:HalfAtFirst", "options": {"share": 0.5}}
    job = online_job(tmp_path, model, prompts_folder(tmp_path / "data"), method="ppo", steps=1, credit=credit)
    run_online(job)
    assert metric(job, "credit/share") == [0.5] and metric(job, "policy/grad_norm")[0] > 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"method": "grpo", "credit": "drca"},
            "credit 'drca' with method 'grpo', which gives every token of a response the same advantage",
        ),
        ({"credit": "process"}, "credit 'process' and no reward of steps or turns"),
        ({"credit": {"kind": "drca", "beta": 1.5}}, "less than or equal to 1"),
        ({"credit": {"kind": "drca", "unit_extraction": "confidence"}}, "unit_extraction"),
        ({"credit": "drcaa"}, "drcaa"),
        ({"credit": "drca", "environment": {"path": "a:B"}}, "credit 'drca' with an environment"),
        (
            {"credit": "drca", "rewards": [{"kind": "python", "function": f"{REWARD}:vowels", "normalise": "group"}]},
            "normalised by group",
        ),
        ({"credit": {"kind": "outcome", "beta": 0.5}}, "beta"),
    ],
)
def test_credit_that_cannot_be_given_is_refused(settings: Mapping[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        validate({"online": settings})


def test_a_name_stands_for_a_kind_with_its_defaults() -> None:
    assert OnlineConfig(credit="drca") == OnlineConfig(credit={"kind": "drca"})
    assert OnlineConfig(credit="process", rewards=[{"kind": "process_reward_model"}]).credit.kind == "process"
