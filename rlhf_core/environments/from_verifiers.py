"""Environments of the library verifiers, as they are: each conversation is one of their own rollouts, with this run's policy as its model.

A rollout asks its model through a client. The one that it gets here hands the messages of the call out as the environment's reply, and answers
with the policy's next turn; so an environment may override whatever it likes, as long as its conversation only grows.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextvars import ContextVar
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any, ClassVar

from data_processing.errors import ConfigError
from rlhf_core.environments.base import Message, Reply, read_messages

# What reward functions have raised in the rollout that is being scored: the library takes such a reward for 0.
_raised: ContextVar[list[Exception]] = ContextVar("raised")


class FromVerifiers:
    """One rollout of the environment that `verifiers.load_environment(name, **arguments)` makes."""

    tools: ClassVar[Sequence[Mapping[str, Any]] | None] = None
    _environment: ClassVar[Any] = None
    _loop: ClassVar[asyncio.AbstractEventLoop]

    @classmethod
    def prepare(cls, name: str, arguments: Mapping[str, Any]) -> None:
        """Load it, in the main thread: the library sets handlers of signals. Raises `ConfigError` for what conversations cannot be held with."""
        try:
            import verifiers
        except ImportError as error:
            raise ConfigError(
                f"environment.verifiers='{name}' needs the library verifiers, which does not import ({error}): "
                'pip install "alignflow[verifiers]"'
            ) from error
        try:
            cls._environment = verifiers.load_environment(name, **arguments)
        except (RuntimeError, ValueError, TypeError) as error:
            raise ConfigError(f"environment.verifiers='{name}' does not load with {dict(arguments)}: {error}") from error
        if cls._environment.message_type != "chat":
            raise ConfigError(f"environment.verifiers='{name}' continues texts; only those that hold a chat can be used")
        for rubric in _rubrics(cls._environment.rubric):
            if of_groups := rubric._get_group_reward_func_names():
                raise ConfigError(
                    f"environment.verifiers='{name}': its reward '{of_groups[0]}' scores a group of rollouts together; a conversation is "
                    "scored when it ends, by itself"
                )
            rubric.funcs = [
                _told(function) if weight else function for function, weight in zip(rubric.funcs, rubric.weights, strict=True)
            ]
        cls.tools = cls._environment.oai_tools or None
        cls._loop = asyncio.new_event_loop()
        threading.Thread(target=cls._loop.run_forever, daemon=True).start()

    def __init__(self, name: str, arguments: Mapping[str, Any]) -> None:
        self._name = name
        # Messages that the rollout asks its model with; None when it is over.
        self._asked: SimpleQueue[list[Message] | None] = SimpleQueue()
        self._rollout: Future[Any] | None = None
        self._answer: asyncio.Future[Any] | None = None
        self._said: list[Message] = []

    def reset(self, prompt: Sequence[Message], label: str | None, columns: Mapping[str, Any]) -> None:
        """The rollout begins, of the row that the library's dataset has for this prompt, or of the prompt and its label alone."""
        row = {"prompt": [dict(message) for message in prompt], "answer": label or "", "task": self._name, "example_id": 0}
        row |= {name: columns[name] for name in ("task", "example_id", "info") if columns.get(name) is not None}
        self._rollout = asyncio.run_coroutine_threadsafe(self._run(row), self._loop)
        self._rollout.add_done_callback(lambda _: self._asked.put(None))
        asked = self._asked.get()
        if asked is None:
            ended = self._rollout.result()
            raise RuntimeError(f"its rollout ended before the first turn ({ended.get('stop_condition')})")
        if _plain(asked) != _plain(prompt):
            raise ValueError(
                "its rollout begins with other messages than the prompt; take the prompts from the environment's own dataset"
            )
        self._said = asked

    def step(self, turn: Message) -> Reply:
        """What the rollout asks its model next, or that it is over, with its reward and its metrics."""
        assert self._rollout is not None and self._answer is not None, "the rollout has asked"
        self._loop.call_soon_threadsafe(self._answer.set_result, _completion(turn, len(self._said)))
        asked = self._asked.get()
        if asked is None:
            return self._over(self._rollout.result())
        before = len(self._said)
        if _plain(asked[:before]) != _plain(self._said) or len(asked) < before + 2:
            raise ValueError("its rollout rewrites what has been said; only conversations that grow can be learnt from")
        self._said = asked
        return Reply(read_messages(asked[before + 1 :]))

    def close(self) -> None:
        """The conversation ended otherwise: the rollout is cancelled, and cleans up."""
        if self._rollout is not None:
            self._rollout.cancel()

    async def _run(self, row: dict[str, Any]) -> Any:
        raised: list[Exception] = []
        _raised.set(raised)
        client = SimpleNamespace(chat=SimpleNamespace(completions=SimpleNamespace(create=self._create)))
        state = await self._environment.rollout(row, client, "policy", {})
        if (error := state.get("error")) is not None:
            raise error.__cause__ or error
        if self._environment.score_rollouts:
            await self._environment.rubric.score_rollout(state)
        if raised:
            raise raised[0]
        return state

    async def _create(self, messages: list[Message], **_: Any) -> Any:
        if self._answer is not None and not self._answer.done():
            raise RuntimeError("it asks its model several things at once; a conversation is one after the other")
        self._answer = asyncio.get_running_loop().create_future()
        self._asked.put([_read(message) for message in messages])
        return await self._answer

    def _over(self, state: Mapping[str, Any]) -> Reply:
        metrics = {name: float(value) for name, value in (state.get("metrics") or {}).items()}
        return Reply(done=True, reward=state.get("reward"), metrics=metrics)


def _rubrics(rubric: Any) -> Iterator[Any]:
    """It, and those that it is made of."""
    yield rubric
    for inner in (*getattr(rubric, "rubrics", ()), *(its.rubric for its in getattr(rubric, "env_map", {}).values())):
        yield from _rubrics(inner)


def _told(function: Callable[..., Any]) -> Callable[..., Any]:
    """The reward function, with what it raises noted."""

    @functools.wraps(function)
    async def told(*args: Any, **kwargs: Any) -> float:
        try:
            value = function(*args, **kwargs)
            return float(await value if inspect.isawaitable(value) else value)
        except Exception as error:
            _raised.get().append(error)
            raise

    return told


def _read(message: Mapping[str, Any]) -> Message:
    """A message with its parts of text as one; the templates of models of text take no others."""
    content = message.get("content")
    if isinstance(content, list):
        if other := [part for part in content if part.get("type") != "text"]:
            raise ValueError(f"it shows the model a part of type {other[0].get('type')!r}; only texts can be read")
        content = "".join(part["text"] for part in content)
    return {**message, "content": content or ""}


def _plain(messages: Sequence[Mapping[str, Any]]) -> list[tuple[Any, Any]]:
    return [(message["role"], (message["content"] or "").strip()) for message in messages]


def _completion(turn: Message, place: int) -> Any:
    """The policy's turn as the answer of an API. A turn that says nothing is a space: for the library an empty one is a broken model."""
    from openai.types.chat import ChatCompletion

    calls = [
        {
            "id": f"call_{place}_{number}",
            "type": "function",
            "function": {"name": call["function"]["name"], "arguments": json.dumps(call["function"]["arguments"])},
        }
        for number, call in enumerate(turn.get("tool_calls") or ())
    ]
    message = {"role": "assistant", "content": turn["content"] or " ", "tool_calls": calls or None}
    choice = {"index": 0, "finish_reason": "tool_calls" if calls else "stop", "message": message, "logprobs": None}
    given = {"id": "turn", "object": "chat.completion", "created": 0, "model": "policy", "choices": [choice]}
    return ChatCompletion.model_validate(given)
