"""Reward functions as people have written them, for us and for TRL, run unchanged; what cannot be called is told in one line."""

import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from data_processing.errors import ConfigError
from rlhf_core.rewards.base import ScoredResponse
from rlhf_core.rewards.compose import ComposedReward
from rlhf_core.rewards.python_function import PythonScorer
from rlhf_core.rewards.weighing import Weighing

MODULE = """
import re, time, asyncio

def text_length(completions, **kwargs):
    return [float(len(completion)) for completion in completions]

def message_length(completions, **kwargs):
    contents = [completion[0]["content"] for completion in completions]
    return [float(len(content)) for content in contents]

def format_reward(prompts, completions, **kwargs):
    assert all(isinstance(prompt, str) for prompt in prompts)
    return [1.0 if re.match(r"^<think>.*</think>", text) else 0.0 for text in completions]

def token_length(prompts, completions, completion_ids, **kwargs):
    return [len(ids) for ids in completion_ids]

def ground_truth(completions, ground_truth, **kwargs):
    return [1.0 if text == truth else 0.0 for text, truth in zip(completions, ground_truth)]

def by_task(prompts, completions, task, **kwargs):
    return [1.0 if kind == "math" else None for kind in task]

def needs_a_column(completions, difficulty):
    return [1.0 for _ in completions]

def at_step(completions, trainer_state, **kwargs):
    return [float(trainer_state.global_step) for _ in completions]

async def awaited(prompts, completions, **kwargs):
    await asyncio.sleep(0)
    return [2.0 for _ in completions]

async def awaited_ours(prompts, responses, labels):
    return [3.0 for _ in responses]

def ours_with_a_column(responses, difficulty):
    return [float(value) for value in difficulty]

def anything(**kwargs):
    assert set(kwargs) >= {"prompts", "completions", "completion_ids", "trainer_state", "task"}
    return [0.5 for _ in kwargs["completions"]]

class Judge:
    async def __call__(self, completions, **kwargs):
        return [4.0 for _ in completions]

judge = Judge()

def in_a_dict(prompts, responses, labels):
    return [{"score": 1.0, "format": True, "why": "short"}, {"score": None, "format": 0.5}, {"reward": float("nan")}]

def both_keys(prompts, responses, labels):
    return [{"score": 1.0, "reward": 2.0} for _ in responses]

def never_returns(prompts, responses, labels):
    while True:
        try:
            time.sleep(60)
        except Exception:
            pass

def by_position(prompts, responses, labels, /):
    return [1.0 for _ in responses]
"""
USER = [{"role": "user", "content": "How long?"}]


@pytest.fixture(autouse=True)
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "reward_forms_for_tests.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("reward_forms_for_tests", None)


def responses(
    *texts: str,
    prompt: Sequence[Mapping[str, Any]] = USER,
    label: str | None = None,
    columns: Sequence[Mapping[str, Any]] = ({}, {}, {}),
) -> list[ScoredResponse]:
    return [
        ScoredResponse(f"p{i}", list(prompt), label, [1], list(range(i + 5)), text, columns[i], step=7)  # type: ignore[arg-type]
        for i, text in enumerate(texts)
    ]


def scorer(name: str, limit_s: float | None = None) -> PythonScorer:
    return PythonScorer(f"reward_forms_for_tests:{name}", limit_s)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("text_length", [5.0, 17.0]),
        ("message_length", [5.0, 17.0]),
        ("format_reward", [0.0, 1.0]),
        ("token_length", [5.0, 6.0]),
        ("ground_truth", [1.0, 0.0]),
        ("by_task", [1.0, None]),
        ("at_step", [7.0, 7.0]),
        ("awaited", [2.0, 2.0]),
        ("awaited_ours", [3.0, 3.0]),
        ("ours_with_a_column", [1.0, 2.0]),
        ("anything", [0.5, 0.5]),
        ("judge", [4.0, 4.0]),
    ],
)
def test_each_form_gets_what_it_asks_for(name: str, expected: list[float | None]) -> None:
    columns = [{"task": "math", "difficulty": 1}, {"task": "code", "difficulty": 2}]
    given = responses("hello", "<think>a</think>b", label="hello", columns=columns)
    reward = scorer(name)
    assert reward.score(given).rewards == expected
    assert reward.score(given).rewards == expected


def test_conversations_are_given_as_messages_as_in_trl() -> None:
    asked = [{"role": "system", "content": "Be short."}, *USER]
    assert scorer("message_length").score(responses("hello", prompt=asked)).rewards == [5.0]
    assert scorer("text_length").score(responses("hello", prompt=asked)).rewards == [1.0]


def test_a_column_of_its_own_name_comes_before_the_label() -> None:
    columns = [{"ground_truth": "a"}, {"ground_truth": "b"}]
    assert scorer("ground_truth").score(responses("a", "a", label="a", columns=columns)).rewards == [1.0, 0.0]


def test_a_column_that_the_prompts_lack_is_named() -> None:
    with pytest.raises(ConfigError, match=r"needs \['difficulty'\].* they have \['label', 'task'\]"):
        scorer("needs_a_column").score(responses("a", columns=[{"task": "math"}]))


def test_of_a_dict_one_key_counts_and_other_numbers_are_metrics() -> None:
    rewards = ComposedReward([(scorer("in_a_dict"), Weighing(2.0))]).score(responses("a", "b", "c"))
    assert rewards.total == [2.0, None, None]
    assert rewards.metrics == {"in_a_dict/format": [1.0, 0.5, None]}
    assert math.isnan(rewards.by_source["in_a_dict"][2] or 0.0)


def test_a_dict_with_two_rewards_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"both_keys.* has both"):
        scorer("both_keys").score(responses("a"))


def test_a_function_that_never_returns_is_named_with_its_line() -> None:
    began = time.monotonic()
    with pytest.raises(ConfigError, match=r"never_returns' did not return within 0\.5 s \(line \d+ of .*time\.sleep\(60\)"):
        scorer("never_returns", limit_s=0.5).score(responses("a"))
    assert time.monotonic() - began < 10


def test_a_function_in_time_is_not_disturbed() -> None:
    reward = scorer("text_length", limit_s=0.3)
    assert [reward.score(responses("ab")).rewards for _ in range(3)] == [[2.0]] * 3
    time.sleep(0.5)


def test_arguments_by_position_only_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"by_position' takes \['prompts', 'responses', 'labels'\] by position"):
        scorer("by_position")
