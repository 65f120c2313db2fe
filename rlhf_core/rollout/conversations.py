"""Responses of several turns: what the model says is answered by an environment, and goes on from the very tokens that were sampled.

Each conversation goes its own way: while an environment thinks, the others are drawn. Only what the model said is learnt from.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from data_processing.errors import DataError
from rlhf_core.batching.chat_template import STAND_IN
from rlhf_core.batching.templates import Renderer
from rlhf_core.environments.host import EnvironmentFailedError, Host
from rlhf_core.rollout.base import EndedBy, Generation, Generator, Sampling, Trajectory
from rlhf_core.settings.environment import EnvironmentSettings

# Turns of one conversation are as many seeds apart, so that no two draws of a round share one.
_SEEDS_A_TURN = 1_000_003
# How soon an answer of an environment is noticed while nothing is drawn.
_LOOK_EVERY_S = 0.05


class Opening(Protocol):
    """What a conversation begins with: a row of the prompts table, and its tokens."""

    @property
    def messages(self) -> Sequence[Mapping[str, Any]]:
        """The prompt's turns."""
        ...

    @property
    def label(self) -> str | None:
        """What the row is labelled with."""
        ...

    @property
    def columns(self) -> Mapping[str, Any]:
        """Further columns of the row."""
        ...

    @property
    def ids(self) -> list[int]:
        """The prompt's tokens."""
        ...

    @property
    def tools(self) -> str | None:
        """The functions that may be called, as JSON."""
        ...


# From the text of a turn to the message that it is: with `tool_calls` where it calls. Raises `ValueError` for a call that is none.
ReadTurn = Callable[[str], dict[str, Any]]


def plain_turn(text: str) -> dict[str, Any]:
    """A turn that calls nothing."""
    return {"role": "assistant", "content": text}


@dataclass
class _Conversation:
    """One of them: its tokens behind the prompt so far, and who has said what."""

    number: int
    opening: Opening
    room_tokens: int
    began_s: float
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    learnt: list[bool] = field(default_factory=list)
    trajectory: Trajectory = field(default_factory=Trajectory)
    # As `trajectory.messages` with the prompt before them, the model's turns by a stand-in.
    rendered: list[dict[str, Any]] = field(default_factory=list)
    version: int = 0

    @property
    def turns(self) -> int:
        return len(self.trajectory.turn_ends)

    def add_turn(self, drawn: Generation, message: dict[str, Any]) -> None:
        self.ids += drawn.response_ids
        self.logprobs += drawn.logprobs
        self.learnt += [True] * len(drawn.response_ids)
        self.version = drawn.weight_version
        self.trajectory.turn_ends.append(len(self.ids) - 1)
        self.trajectory.rewards.append(None)
        self.trajectory.messages.append(message)
        calls = {"tool_calls": message["tool_calls"]} if "tool_calls" in message else {}
        self.rendered.append({"role": "assistant", "content": STAND_IN, **calls})

    def add_reply(self, ids: Sequence[int], messages: Sequence[dict[str, Any]]) -> None:
        self.ids += ids
        self.logprobs += [0.0] * len(ids)
        self.learnt += [False] * len(ids)
        self.trajectory.messages += messages
        self.rendered += messages

    def generation(self) -> Generation:
        """All of it as one response. One that failed before the model said anything has a token that nobody drew (see `Rollouts.of`)."""
        ids, logprobs, learnt = (self.ids, self.logprobs, self.learnt) if self.turns else ([self.opening.ids[-1]], [0.0], [True])
        cut = self.trajectory.ended_by in ("cut", "tokens")
        return Generation(ids, logprobs, "length" if cut else "stop", self.version, learnt, self.trajectory)


@dataclass(frozen=True, slots=True)
class _Question:
    """What an environment was asked: of which conversation, and when."""

    number: int
    asked_s: float = field(default_factory=time.monotonic)


class Conversations:
    """Holds conversations with the environment of `settings`, drawn by `generator`; `room_tokens` bound prompt and all turns together."""

    def __init__(
        self,
        generator: Generator,
        renderer: Renderer,
        settings: EnvironmentSettings,
        room_tokens: int,
        *,
        read_turn: ReadTurn = plain_turn,
    ) -> None:
        self._generator, self._renderer, self._settings, self._room_tokens = generator, renderer, settings, room_tokens
        self._read_turn = read_turn
        self._host = Host(*settings.hosted)

    def stream(self, openings: Sequence[Opening], sampling: Sampling, seed: int) -> Iterator[tuple[int, Generation]]:
        """`sampling.n` conversations from each opening, each when it is over, numbered as by `Generator.stream`.

        `sampling.max_new_tokens` bounds one turn. An environment that fails ends its conversation, and `trajectory.failure` says why.
        """
        now = time.monotonic()
        held = {
            number: _Conversation(number, opening := openings[number // sampling.n], self._room(opening), now)
            for number in range(len(openings) * sampling.n)
        }
        asked = {self._host.ask(each.number, "reset", _told(each.opening)): _Question(each.number) for each in held.values()}
        drawing: set[int] = set()
        while held:
            for future in self._answered(asked, is_drawing=bool(drawing)):
                conversation = held[asked.pop(future).number]
                if self._take_answer(conversation, future, sampling, seed):
                    drawing.add(conversation.number)
                else:
                    yield conversation.number, self._over(held.pop(conversation.number))
            for number, drawn in self._generator.ended() if drawing and not (asked and self._generator.in_batches) else ():
                drawing.remove(number)
                if self._take_turn(held[number], drawn):
                    turn = held[number].trajectory.messages[-1]
                    asked[self._host.ask(number, "step", {"turn": turn})] = _Question(number)
                else:
                    yield number, self._over(held.pop(number))

    def close(self) -> None:
        """End the environments' process."""
        self._host.close()

    def _room(self, opening: Opening) -> int:
        room = self._room_tokens - len(opening.ids)
        return min(room, self._settings.max_response_tokens or room)

    def _answered(self, asked: Mapping[Future[Any], _Question], *, is_drawing: bool) -> list[Future[Any]]:
        """The answers that are there, or overdue; waited for a moment where nothing is drawn, or can be."""
        if asked and (not is_drawing or self._generator.in_batches):
            wait(asked, timeout=_LOOK_EVERY_S, return_when=FIRST_COMPLETED)
        late_s = time.monotonic() - self._settings.step_timeout_s
        return [future for future, question in asked.items() if future.done() or question.asked_s < late_s]

    def _take_answer(self, conversation: _Conversation, future: Future[Any], sampling: Sampling, seed: int) -> bool:
        """What the environment said; whether the model's next turn is being drawn."""
        trajectory = conversation.trajectory
        try:
            if not future.done():
                raise EnvironmentFailedError(f"no answer within {self._settings.step_timeout_s:g} s (environment.step_timeout_s)")
            answer = future.result()
            if conversation.turns:
                return self._go_on(conversation, answer, sampling, seed)
            conversation.rendered = [dict(message) for message in conversation.opening.messages]
            return self._begin(conversation, sampling, seed)
        except (EnvironmentFailedError, DataError) as error:
            trajectory.ended_by, trajectory.failure = "failed", str(error)
            return False

    def _go_on(self, conversation: _Conversation, answer: Mapping[str, Any], sampling: Sampling, seed: int) -> bool:
        trajectory = conversation.trajectory
        trajectory.rewards[-1] = answer["reward"]
        for name, value in answer["metrics"].items():
            trajectory.metrics[name] = trajectory.metrics.get(name, 0.0) + value
        if answer["done"]:
            return self._ends(conversation, "done")
        if conversation.turns >= self._settings.max_turns:
            return self._ends(conversation, "turns")
        if self._settings.max_seconds and time.monotonic() - conversation.began_s > self._settings.max_seconds:
            return self._ends(conversation, "time")
        tools = json.loads(conversation.opening.tools) if conversation.opening.tools else None
        *before, turn = conversation.rendered
        ids = self._renderer.reply_ids(before, turn, answer["messages"], tools)
        if len(conversation.ids) + len(ids) >= conversation.room_tokens:
            return self._ends(conversation, "tokens")
        conversation.add_reply(ids, answer["messages"])
        return self._begin(conversation, sampling, seed)

    def _ends(self, conversation: _Conversation, why: EndedBy) -> bool:
        conversation.trajectory.ended_by = why
        return False

    def _begin(self, conversation: _Conversation, sampling: Sampling, seed: int) -> bool:
        room = conversation.room_tokens - len(conversation.ids)
        if room < 1:
            return self._ends(conversation, "tokens")
        turn = replace(sampling, n=1, max_new_tokens=min(sampling.max_new_tokens, room))
        own_seed = (seed + conversation.number + _SEEDS_A_TURN * conversation.turns) % 2**31
        self._generator.begin(conversation.number, [*conversation.opening.ids, *conversation.ids], turn, own_seed)
        return True

    def _take_turn(self, conversation: _Conversation, drawn: Generation) -> bool:
        """What the model said; whether the environment should answer."""
        text = self._renderer.tokenizer.decode(drawn.response_ids, skip_special_tokens=True)
        try:
            message = self._read_turn(text)
        except ValueError as error:
            message = {**plain_turn(text), "tool_error": str(error)}
            metrics = conversation.trajectory.metrics
            metrics["tool_errors"] = metrics.get("tool_errors", 0.0) + 1
        conversation.add_turn(drawn, message)
        return True if drawn.finish_reason == "stop" else self._ends(conversation, "cut")

    def _over(self, conversation: _Conversation) -> Generation:
        self._host.end(conversation.number)
        return conversation.generation()


def _told(opening: Opening) -> dict[str, Any]:
    messages = [dict(message) for message in opening.messages]
    return {"prompt": messages, "label": opening.label, "columns": dict(opening.columns)}
