"""What a chat template leaves out or refuses, seen by rendering one conversation of each kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from data_processing.errors import ConfigError, DataError
from rlhf_core.batching.rendering import SYSTEM

if TYPE_CHECKING:
    from rlhf_core.batching.chat_template import ChatTemplate, Message

TURNS, REASONING, TOOLS = "several answers", "reasoning", "tools"
_QUESTION: Message = {"role": "user", "content": "Which ferry?"}
_ANSWER: Message = {"role": "assistant", "content": "Heron."}
_TOOL = {
    "type": "function",
    "function": {
        "name": "list_ferries",
        "description": "Ferries of a harbour.",
        "parameters": {"type": "object", "properties": {"harbour": {"type": "string", "description": "Its name."}}},
    },
}


def refusals(template: ChatTemplate) -> dict[str, str]:
    """Why rows cannot be used that hold a system turn, several answers, reasoning, or tools; nothing for what is rendered."""
    thought: Message = {"role": "assistant", "content": "<think>\nGulls follow it.\n</think>\n\nHeron."}
    kinds: dict[str, Callable[[], object]] = {
        SYSTEM: lambda: _rendered(template, [{"role": "system", "content": "Be brief."}, _QUESTION, _ANSWER], "Be brief."),
        TURNS: lambda: _goes_on(template),
        REASONING: lambda: _rendered(template, [_QUESTION, thought], "Gulls follow it."),
        TOOLS: lambda: _has_tools(template),
    }
    found = {}
    for kind, tried in kinds.items():
        try:
            tried()
        except (ConfigError, DataError) as error:
            found[kind] = " ".join(str(error).split())
    return found


def _rendered(template: ChatTemplate, messages: Sequence[Message], text: str) -> str:
    opening, answer = template.turn(messages)
    if text not in opening + answer:
        raise DataError("the chat template leaves it out")
    return opening + answer


def _goes_on(template: ChatTemplate) -> None:
    first = _rendered(template, [_QUESTION, _ANSWER], "Heron.")
    later = template.opening([_QUESTION, _ANSWER, _QUESTION])
    if not later.startswith(first):
        raise template.rewrites(2, first, later)


def _has_tools(template: ChatTemplate) -> None:
    if "list_ferries" not in template.opening([_QUESTION], [_TOOL]):
        raise DataError("the chat template leaves them out")
