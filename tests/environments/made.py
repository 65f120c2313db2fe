"""Environments that the tests name by import path; they run in a process of their own."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_core.environments.base import Reply


class Echo:
    """Says back how many words it heard, up to `replies` times; each turn earns its number, from 1."""

    tools: Sequence[Any] = ()

    def __init__(self, replies: int = 1) -> None:
        self.left, self.turn = replies, 0

    def reset(self, prompt: Sequence[Any], label: str | None, columns: Mapping[str, Any]) -> None:
        self.asked = prompt[-1]["content"]

    def step(self, turn: Mapping[str, Any]) -> Reply:
        self.turn += 1
        if not self.left:
            return Reply(done=True, reward=float(self.turn))
        self.left -= 1
        said = f"{len(turn['content'].split())} words about {self.asked}"
        return Reply([{"role": "user", "content": said}], reward=float(self.turn), metrics={"echoes": 1})


class Counts(Echo):
    """A turn earns its length, in tens of characters."""

    def step(self, turn: Mapping[str, Any]) -> Reply:
        reply = super().step(turn)
        return Reply(reply.messages, reply.done, len(turn["content"]) / 10, reply.metrics)


class Awaited(Echo):
    async def step(self, turn: Mapping[str, Any]) -> Reply:  # type: ignore[override]
        return Echo.step(self, turn)


class Slow(Echo):
    """Takes its time for prompts with "and"."""

    def step(self, turn: Mapping[str, Any]) -> Reply:
        if "and" in self.asked:
            time.sleep(1.0)
        return super().step(turn)


class Hangs(Echo):
    def step(self, turn: Mapping[str, Any]) -> Reply:
        time.sleep(600)
        return super().step(turn)


class Dies(Echo):
    """Takes its process with it, for prompts about 2."""

    def step(self, turn: Mapping[str, Any]) -> Reply:
        if "2" in self.asked:
            os._exit(3)
        return super().step(turn)


class Raises(Echo):
    """At the first turn, for prompts with "and"."""

    def step(self, turn: Mapping[str, Any]) -> Reply:
        if "and" in self.asked:
            raise KeyError("no such tool")
        return super().step(turn)


class RaisesAtOnce(Echo):
    def reset(self, prompt: Sequence[Any], label: str | None, columns: Mapping[str, Any]) -> None:
        if "1" in prompt[-1]["content"]:
            raise ValueError("not this one")
        super().reset(prompt, label, columns)


class Endless(Echo):
    def step(self, turn: Mapping[str, Any]) -> Mapping[str, Any]:  # type: ignore[override]
        return {"messages": [{"role": "user", "content": "go on"}]}


class WrongReplies(Echo):
    """Returns what its option says."""

    def __init__(self, returned: Any) -> None:
        super().__init__()
        self.returned = returned

    def step(self, turn: Mapping[str, Any]) -> Any:
        return self.returned
