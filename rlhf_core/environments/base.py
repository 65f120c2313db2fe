"""What an environment is: an object for each conversation, that is told what it is about and answers each turn of the model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from data_processing.errors import ConfigError

Message = dict[str, Any]
# Roles that an environment may speak in.
ROLES = ("user", "tool", "system")


@dataclass(frozen=True, slots=True)
class Reply:
    """What an environment says to a turn: `messages` for the model, or with `done` that the conversation is over.

    `reward` is what this turn earns, None for nothing; `metrics` are numbers of it, told as means over the conversations.
    """

    messages: Sequence[Message] = ()
    done: bool = False
    reward: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


class Environment(Protocol):
    """One conversation's other side. Made anew for each; `reset` comes first, then `step` for each turn until one is done.

    Both may be async. What they raise makes the conversation invalid, and is counted; it never becomes a reward. A class may have
    `tools`: the functions that a model may call, as the chat template takes them; `prepare(**options)`, a classmethod for what all
    conversations share, called once in its process, in the main thread, before any of them; and `close()`, called when a conversation is over.
    """

    def reset(self, prompt: Sequence[Message], label: str | None, columns: Mapping[str, Any]) -> None:
        """The conversation begins with `prompt`, which has this label and these further columns."""
        ...

    def step(self, turn: Message) -> Reply | Mapping[str, Any] | None:
        """The model has said `turn` (role assistant, content, and `tool_calls` where it calls); None: it is over, without a reward."""
        ...


def read_reply(given: Any) -> Reply:
    """What `step` returned; raises `TypeError` or `ValueError` saying what is wrong with it."""
    if given is None:
        return Reply(done=True)
    reply = Reply(**given) if isinstance(given, Mapping) else given
    if not isinstance(reply, Reply):
        raise TypeError(f"step returned a {type(given).__name__}; return a Reply, a dict with its fields, or None")
    if reply.reward is not None and not math.isfinite(reply.reward):
        raise ValueError(f"step returned the reward {reply.reward}; a reward is a finite number, or None")
    messages = read_messages(reply.messages)
    if not messages and not reply.done:
        raise ValueError("step returned no messages and is not done: the model would have nothing to answer")
    return Reply(messages, reply.done, reply.reward, {name: float(value) for name, value in reply.metrics.items()})


def read_messages(given: Any) -> list[Message]:
    """Messages of an environment; raises `TypeError` or `ValueError` for what is none."""
    messages = [dict(message) for message in given or ()]
    for message in messages:
        if message.get("role") not in ROLES or not isinstance(message.get("content"), str):
            raise ValueError(
                f"a message has role {message.get('role')!r}; allowed are {', '.join(ROLES)}, each with a text as content"
            )
    return messages


def load_environment(path: str) -> type[Environment]:
    """The class at `module:Class`; raises `ConfigError` saying what is wrong with it."""
    from rlhf_core.imported import imported

    found: Any = imported(path, "environment.path", "my_environments:Calculator")
    missing = [name for name in ("reset", "step") if not callable(getattr(found, name, None))]
    if not isinstance(found, type) or missing:
        raise ConfigError(
            f"environment.path='{path}': must be a class with {' and '.join(missing) or 'reset and step'}: docs/environments.md"
        )
    return found
