"""Rewards: weighted sums keep their parts, and an error is never a number."""

import math
import random
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import requests

from data_processing.errors import ConfigError, DivergedError
from data_processing.procedures.optimal import optimal_procedure, render
from data_processing.procedures.policy import draw_policy
from rlhf_core.rewards.base import ScoredResponse, Scores
from rlhf_core.rewards.build import Around, build_reward
from rlhf_core.rewards.compose import ComposedReward
from rlhf_core.rewards.errors import TransientRewardError
from rlhf_core.rewards.procedures import ProceduresScorer
from rlhf_core.rewards.weighing import Weighing
from rlhf_core.settings.rewards.functions import PythonReward
from rlhf_core.settings.rewards.models import RewardModelReward
from rlhf_core.settings.training import EngineSettings

AROUND = Around(Path("unused"), EngineSettings())
MODULE = """
def length(prompts, responses, labels):
    return [len(text) for text in responses]
def labelled(*, prompts, responses, labels):
    return [float(label == text) for label, text in zip(labels, responses)]
def breaks(prompts, responses, labels):
    raise RuntimeError("the service is down")
def leaves(prompts, responses, labels):
    raise SystemExit(3)
def parses(prompts, responses, labels):
    import json
    return [json.loads(text) for text in responses]
def lazy(prompts, responses, labels):
    for text in responses:
        yield 1.0 / len(text)
def lazy_and_broken(prompts, responses, labels):
    yield 1.0
    raise RuntimeError("half of it")
def nothing(prompts, responses, labels):
    pass
def other_names(texts):
    return [1.0 for _ in texts]
def short(prompts, responses, labels):
    return [1.0]
def words(prompts, responses, labels):
    return ["good" for _ in responses]
def digits(prompts, responses, labels):
    return ["1.0" for _ in responses]
def dicts(prompts, responses, labels):
    return [{"mark": 1.0} for _ in responses]
def infinite(prompts, responses, labels):
    return [0.0] * (len(responses) - 1) + [float("inf")]
def letters(prompts, responses, labels):
    return [None if text == "skip" else float("nan") if text == "fail" else len(text) for text in responses]
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
        [PythonReward(function=f"reward_functions_for_tests:{name}", weight=weight) for name, weight in sources], AROUND
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
        ("breaks", 'reward_functions_for_tests.py: raise RuntimeError("the service is down")), scoring 2 responses'),
        ("parses", "py: return [json.loads(text) for text in responses])"),
        ("leaves", "raised SystemExit: 3"),
        ("lazy_and_broken", "raised RuntimeError: half of it"),
        ("other_names", "takes ['texts'] and so no responses; write it as (prompts, responses, labels), or as for TRL"),
        ("nothing", "must return a list of numbers, not None"),
        ("digits", "must return a list of numbers, not ['1.0', '1.0']"),
        ("dicts", "must return a list of numbers, not [{'mark': 1.0}, {'mark': 1.0}]: one a response"),
        ("dicts", "or a dict with 'score' or 'reward' (a dict with the keys ['mark'] has neither)"),
        ("short", "1 numbers for 2 responses"),
        ("words", "must return a list of numbers"),
    ],
)
def test_a_broken_function_is_named(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"reward_functions_for_tests:{name}") as caught:
        composed((name, 1.0)).score(responses("a", "b"))
    assert said in str(caught.value)


@pytest.mark.usefixtures("functions")
def test_an_infinite_reward_stops_and_names_function_and_response() -> None:
    with pytest.raises(DivergedError, match=r"reward 'infinite' gave inf for prompt p1, response 'the text'"):
        composed(("infinite", 1.0)).score(responses("fine", "the text"))


@pytest.mark.usefixtures("functions")
def test_none_leaves_the_sum_to_the_others_and_nan_makes_a_response_invalid() -> None:
    rewards = composed(("letters", 2.0), ("length", 0.5)).score(responses("abc", "skip", "fail"))
    assert rewards.total == [7.5, 2.0, None]
    assert rewards.is_valid == [True, True, False]
    assert rewards.invalid_share == pytest.approx(1 / 3)
    assert rewards.why_invalid() == "reward 'letters' gave NaN for 1"
    alone = composed(("letters", 2.0)).score(responses("abc", "skip", "fail", "skip"))
    assert alone.total == [6.0, None, None, None]
    assert alone.why_invalid() == "reward 'letters' gave NaN for 1, none of ['letters'] applies to 2"


@pytest.mark.usefixtures("functions")
def test_a_function_may_be_a_generator() -> None:
    assert composed(("lazy", 1.0)).score(responses("a", "bb")).total == [1.0, 0.5]


@pytest.mark.usefixtures("functions")
def test_what_a_function_raises_for_a_while_is_passed_on_as_that(monkeypatch: pytest.MonkeyPatch) -> None:
    import reward_functions_for_tests

    def times_out(**arguments: object) -> list[float]:
        raise requests.ReadTimeout("30 s")

    monkeypatch.setattr(reward_functions_for_tests, "breaks", times_out)
    with pytest.raises(TransientRewardError, match=r"failed 1 times.*breaks' raised ReadTimeout: 30 s \(line"):
        composed(("breaks", 1.0)).score(responses("a"))


@pytest.mark.usefixtures("functions")
@pytest.mark.parametrize(
    ("path", "said"),
    [("no_colon", "module:name"), ("nowhere:f", "does not import"), ("reward_functions_for_tests:gone", "has no function")],
)
def test_a_path_that_leads_nowhere_says_which_part(path: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build_reward([PythonReward(function=path)], AROUND)


def test_a_reward_model_that_is_not_given_is_an_error() -> None:
    around = replace(AROUND, scorers={"rm": Path("unused")})
    with pytest.raises(ConfigError, match=r"kind 'reward_model' needs the reward model 'safety', and this run has \['rm'\]"):
        build_reward([RewardModelReward(input="safety")], around)


@pytest.mark.usefixtures("functions")
def test_a_source_goes_by_the_name_that_it_is_given() -> None:
    sources = [PythonReward(function="reward_functions_for_tests:length", name=name) for name in ("brevity", None)]
    assert list(build_reward(sources, AROUND).score(responses("abc")).by_source) == ["brevity", "length"]


class Waiting:
    """A source that waits, and notes which texts it was asked for in each call; `fails` are the calls that fail for a while."""

    name, waits = "waiting", True

    def __init__(self, fails: int = 0) -> None:
        self.calls: list[list[str]] = []
        self._fails = fails

    def score(self, responses: Sequence[ScoredResponse]) -> Scores:
        self.calls.append([response.text for response in responses])
        if len(self.calls) <= self._fails:
            raise TransientRewardError("busy")
        rewards = [math.nan if response.text == "bad" else float(len(response.text)) for response in responses]
        lengths = [float(response.step) for response in responses]
        why = ["it is bad" if response.text == "bad" else None for response in responses]
        return Scores(rewards, {"step": lengths}, failures=why)


def drawn(*texts: str, step: int = 0) -> list[ScoredResponse]:
    return [ScoredResponse(f"p{i}", [], None, [1], [ord(c) for c in text], text, {}, step) for i, text in enumerate(texts)]


def test_what_was_begun_ahead_is_not_asked_again() -> None:
    source = Waiting()
    reward = ComposedReward([(source, Weighing(1.0))])
    given = drawn("a", "bb", "bad", "dddd")
    reward.begin(given[1:3])
    reward.begin(given[1:2])
    found = reward.score(given)
    assert found.total == [1.0, 2.0, None, 4.0]
    assert found.metrics["waiting/step"] == [0.0] * 4
    assert found.failures == {"waiting": [None, None, "it is bad", None]}
    assert found.why_invalid() == "reward 'waiting' gave NaN for 1, the first: it is bad"
    assert source.calls == [["bb", "bad"], ["a", "dddd"]]


def test_what_later_rounds_have_begun_stays_when_an_earlier_one_is_scored() -> None:
    source = Waiting()
    reward = ComposedReward([(source, Weighing(1.0))])
    reward.begin(drawn("a", step=1))
    reward.begin(drawn("a", step=0))
    reward.score(drawn("a", step=0))
    reward.score(drawn("eval", step=7), is_learnt=False)
    assert reward.score(drawn("a", step=1)).metrics["waiting/step"] == [1.0]
    assert sorted(source.calls) == [["a"], ["a"], ["eval"]]


def test_a_call_ahead_that_failed_for_a_while_is_made_again() -> None:
    source = Waiting(fails=1)
    reward = ComposedReward([(source, Weighing(1.0))])
    reward.begin(drawn("a", "bb"))
    assert reward.score(drawn("a", "bb")).total == [1.0, 2.0]
    assert source.calls == [["a", "bb"], ["a", "bb"]]


def test_sources_that_wait_are_asked_beside_the_others() -> None:
    meeting = threading.Barrier(3, timeout=20)

    class Meets(Waiting):
        def score(self, responses: Sequence[ScoredResponse]) -> Scores:
            meeting.wait()
            return super().score(responses)

    class MeetsHere(Meets):
        waits = False

        def score(self, responses: Sequence[ScoredResponse]) -> Scores:
            assert threading.current_thread() is threading.main_thread(), "functions may set alarms"
            return super().score(responses)

    reward = ComposedReward([(kind(), Weighing(1.0)) for kind in (Meets, MeetsHere, Meets)])
    assert reward.score(drawn("a")).total == [3.0]
    assert reward.waits and not ComposedReward([(MeetsHere(), Weighing(1.0))]).waits


def test_procedures_reward_is_the_checkers_score() -> None:
    policy = draw_policy(random.Random(3), difficulty=2)
    right = render(optimal_procedure(policy))
    reward = ComposedReward([(ProceduresScorer(), Weighing(2.0))])
    rewards = reward.score(responses(right, "APPROVE everything", label=policy.model_dump_json()))
    assert rewards.by_source == {"procedures": [1.0, 0.0]}
    assert rewards.total == [2.0, 0.0]


def test_procedures_reward_without_a_policy_names_the_prompt() -> None:
    with pytest.raises(ConfigError, match="prompt p0 has none"):
        ComposedReward([(ProceduresScorer(), Weighing(1.0))]).score(responses("A. ..."))


def test_zero_is_a_reward_like_any_other() -> None:
    class Zero:
        name = "zero"

        def score(self, responses: list[ScoredResponse]) -> list[float]:
            return [0.0] * len(responses)

    rewards = ComposedReward([(Zero(), Weighing(1.0))]).score(responses("a"))
    assert rewards.total == [0.0]


def test_a_reward_process_without_a_reward_model_imports_no_torch() -> None:
    code = "import sys, rlhf_core.cluster.reward_actor; print([n for n in ('torch', 'transformers', 'deepspeed') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
