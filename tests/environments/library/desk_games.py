"""Environments as authors of the library verifiers write them: a module that `verifiers.load_environment("desk-games", ...)` finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import verifiers as vf
from datasets import Dataset


def right(completion: Any, answer: str, **_: Any) -> float:
    return float(answer in completion[-1]["content"])


def has_two(completion: Any, **_: Any) -> float:
    return float("2" in completion[-1]["content"])


def short(completion: Any, **_: Any) -> float:
    return float(len(completion[-1]["content"]) < 20)


def angry(completion: Any, answer: str, **_: Any) -> float:
    if "angry" in completion[-1]["content"]:
        raise KeyError("no such mood")
    return 1.0


def best_of_all(completions: Any, **_: Any) -> list[float]:
    return [1.0 for _ in completions]


class Guess(vf.MultiTurnEnv):
    async def env_response(self, messages: Any, state: Any, **_: Any) -> Any:
        said = int(messages[-1]["content"].split()[-1])
        if said == int(state["answer"]):
            state["final_env_response"] = [{"role": "user", "content": "found"}]
            return state["final_env_response"]
        return [{"role": "user", "content": "higher" if said < int(state["answer"]) else "lower"}]


class Echo(vf.MultiTurnEnv):
    async def env_response(self, messages: Any, state: Any, **_: Any) -> Any:
        return [{"role": "user", "content": f"{len(messages[-1]['content'])} characters"}]


class Rewrites(vf.MultiTurnEnv):
    async def get_prompt_messages(self, state: Any) -> Any:
        if not state["trajectory"]:
            return state["prompt"]
        return [
            {"role": "user", "content": "something else"},
            {"role": "assistant", "content": "x"},
            {"role": "user", "content": "y"},
        ]

    async def env_response(self, messages: Any, state: Any, **_: Any) -> Any:
        return []


class Broken(vf.SingleTurnEnv):
    async def setup_state(self, state: Any) -> Any:
        try:
            raise OSError("the board is not there")
        except OSError as error:
            raise vf.Error("no setup") from error


class Cleans(Guess):
    @vf.cleanup
    async def put_away(self, state: Any) -> None:
        Path(self.left_at).write_text("put away\n", encoding="utf-8")


async def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: the first
        b: the second

    Returns:
        Their sum
    """
    return a + b


def load_environment(kind: str = "single", rows: int = 4, **more: Any) -> vf.Environment:
    data = Dataset.from_list([{"question": f"Which number is {n}?", "answer": str(n), "info": {"level": n}} for n in range(rows)])
    rubric = vf.Rubric(funcs=[right, short], weights=[1.0, 0.5])
    made = {
        "single": lambda: vf.SingleTurnEnv(dataset=data, rubric=rubric, system_prompt="Answer."),
        "guess": lambda: Guess(dataset=data, rubric=rubric, max_turns=5),
        "echo": lambda: Echo(dataset=data, rubric=vf.Rubric(funcs=[has_two, short], weights=[1.0, 0.5]), max_turns=2),
        "tools": lambda: vf.ToolEnv(dataset=data, rubric=rubric, tools=[add]),
        "angry": lambda: vf.SingleTurnEnv(dataset=data, rubric=vf.Rubric(funcs=[angry])),
        "groups": lambda: vf.SingleTurnEnv(dataset=data, rubric=vf.Rubric(funcs=[best_of_all])),
        "rewrites": lambda: Rewrites(dataset=data, rubric=rubric),
        "broken": lambda: Broken(dataset=data, rubric=rubric),
        "cleans": lambda: Cleans(dataset=data, rubric=rubric, max_turns=5, **more),
        "texts": lambda: vf.SingleTurnEnv(
            dataset=data.rename_column("question", "prompt"), rubric=rubric, message_type="completion"
        ),
        "several": lambda: vf.EnvGroup(
            [vf.SingleTurnEnv(dataset=data, rubric=rubric), Guess(dataset=data, rubric=rubric)], ["one", "two"]
        ),
    }
    return made[kind]()
