"""Rewards: weighted sums keep their parts, and an error is never a number."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from data_processing.errors import ConfigError, DivergedError
from data_processing.procedures_optimal import optimal_procedure, render
from data_processing.procedures_policy import draw_policy
from rlhf_core.config import EngineSettings, RewardSource
from rlhf_core.rewards.base import ScoredResponse
from rlhf_core.rewards.build import build_reward
from rlhf_core.rewards.compose import ComposedReward
from rlhf_core.rewards.procedures import ProceduresScorer

MODULE = """
def length(prompts, responses, labels):
    return [len(text) for text in responses]
def labelled(*, prompts, responses, labels):
    return [float(label == text) for label, text in zip(labels, responses)]
def breaks(prompts, responses, labels):
    raise RuntimeError("the service is down")
def short(prompts, responses, labels):
    return [1.0]
def words(prompts, responses, labels):
    return ["good" for _ in responses]
def nan(prompts, responses, labels):
    return [0.0] * (len(responses) - 1) + [float("nan")]
"""


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "reward_functions_for_tests.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("reward_functions_for_tests", None)


def responses(*texts: str, label: str | None = None) -> list[ScoredResponse]:
    return [ScoredResponse(f"p{i}", [{"role": "user", "content": "hi"}], label, [1], [2], text) for i, text in enumerate(texts)]


def composed(*sources: tuple[str, float]) -> ComposedReward:
    return build_reward(
        [RewardSource(kind="python", function=f"reward_functions_for_tests:{name}", weight=weight) for name, weight in sources],
        policy_model=Path("unused"),
        reward_model=None,
        engine=EngineSettings(),
        trust_remote_code=False,
    )


@pytest.mark.usefixtures("functions")
def test_sum_is_weighted_and_parts_are_kept() -> None:
    rewards = composed(("length", 0.5), ("labelled", -2.0)).score(responses("abc", "yes", label="yes"))
    assert rewards.by_source == {"length": [3.0, 3.0], "labelled": [0.0, 1.0]}
    assert rewards.total == [1.5, -0.5]


@pytest.mark.usefixtures("functions")
def test_the_same_function_twice_keeps_two_columns() -> None:
    rewards = composed(("length", 1.0), ("length", 2.0)).score(responses("abc"))
    assert rewards.by_source == {"length": [3.0], "length_2": [3.0]}
    assert rewards.total == [9.0]


@pytest.mark.usefixtures("functions")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("breaks", "RuntimeError: the service is down"),
        ("short", "1 numbers for 2 responses"),
        ("words", "must return a list of numbers"),
    ],
)
def test_a_broken_function_is_named(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"reward_functions_for_tests:{name}") as caught:
        composed((name, 1.0)).score(responses("a", "b"))
    assert said in str(caught.value)


@pytest.mark.usefixtures("functions")
def test_nan_stops_and_names_function_and_response() -> None:
    with pytest.raises(DivergedError, match=r"reward 'nan' gave nan for prompt p1, response 'the text'"):
        composed(("nan", 1.0)).score(responses("fine", "the text"))


@pytest.mark.usefixtures("functions")
@pytest.mark.parametrize(
    ("path", "said"),
    [("no_colon", "module:function"), ("nowhere:f", "does not import"), ("reward_functions_for_tests:gone", "has no function")],
)
def test_a_path_that_leads_nowhere_says_which_part(path: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build_reward(
            [RewardSource(kind="python", function=path)],
            policy_model=Path("unused"),
            reward_model=None,
            engine=EngineSettings(),
            trust_remote_code=False,
        )


def test_a_reward_model_that_is_not_given_is_an_error() -> None:
    with pytest.raises(ConfigError, match="reward_model stage"):
        build_reward(
            [RewardSource(kind="reward_model")],
            policy_model=Path("unused"),
            reward_model=None,
            engine=EngineSettings(),
            trust_remote_code=False,
        )


def test_procedures_reward_is_the_checkers_score() -> None:
    policy = draw_policy(random.Random(3), difficulty=2)
    right = render(optimal_procedure(policy))
    reward = ComposedReward([(ProceduresScorer(), 2.0)])
    rewards = reward.score(responses(right, "APPROVE everything", label=policy.model_dump_json()))
    assert rewards.by_source == {"procedures": [1.0, 0.0]}
    assert rewards.total == [2.0, 0.0]


def test_procedures_reward_without_a_policy_names_the_prompt() -> None:
    with pytest.raises(ConfigError, match="prompt p0 has none"):
        ComposedReward([(ProceduresScorer(), 1.0)]).score(responses("A. ..."))


def test_zero_is_a_reward_like_any_other() -> None:
    class Zero:
        name = "zero"

        def score(self, responses: list[ScoredResponse]) -> list[float]:
            return [0.0] * len(responses)

    rewards = ComposedReward([(Zero(), 1.0)]).score(responses("a"))
    assert rewards.total == [0.0]


def test_a_reward_process_without_a_reward_model_imports_no_torch() -> None:
    code = "import sys, rlhf_core.cluster.reward_actor; print([n for n in ('torch', 'transformers', 'deepspeed') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
