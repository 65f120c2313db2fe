"""What a source row says, whatever its shape; and what it must say to be a row of a table."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from data_processing.schemas import TableName
from data_processing.sources.turn import BadRow
from data_processing.turns import TEXT_ROLE, Message


class Record(NamedTuple):
    """A prompt, perhaps a response, perhaps a worse one; or, as a prompt of one turn of role `text`, a text without turns."""

    prompt: list[Message]
    response: list[Message] | None = None
    rejected: list[Message] | None = None


# What stands in a text for what is not text: at its beginning or end, the names of HTML's elements on a line of their own.
_PLACEHOLDER = re.compile(r"\A\s*<image>|\A\s*<(audio|video)>\s*\n|<image>\s*\Z|\n\s*<(audio|video)>\s*\Z")


def check(record: Record, table: TableName) -> None:
    """Raise `BadRow` with the reason where no stage could use the record as a row of the table, whatever the chat template.

    A prompt has a user turn and no assistant turn at its end; responses start and end with an assistant turn. What a
    template makes of it (roles that it refuses, turns that it trims) is for the stages to see.
    """
    roles = [message["role"] for message in record.prompt]
    if roles == [TEXT_ROLE]:
        if table != "sft":
            raise BadRow(f"is a text without turns, which only the sft table takes, not '{table}'")
        return
    if "user" not in roles:
        raise BadRow("has no user turn before the answer")
    _refuse_placeholders(record.prompt)
    if roles[-1] == "assistant":
        raise BadRow("the prompt ends with an assistant turn")
    if table == "prompts":
        return
    if record.response is None:
        raise BadRow("has no answer: it ends with a prompt")
    _check_answer(record.response, "response")
    if table != "sft":
        _check_weights((*record.response, *(record.rejected or ())), table)
    if table == "preference":
        if record.rejected is None:
            raise BadRow("has no rejected answer (columns chosen + rejected, or question + response_j + response_k)")
        _check_answer(record.rejected, "rejected")
        if record.response == record.rejected:
            raise BadRow("chosen and rejected are the same")
    # All assistant turns of a conversation are learnt, and the first would have nothing before it.
    if table == "sft" and roles[0] == "assistant":
        raise BadRow("starts with an assistant turn: put a user or system turn before it, or remove it")
    if table == "sft" and not any(_is_learnt(message) for message in (*record.prompt, *record.response)):
        raise BadRow("nothing is learnt from it: every assistant turn has weight 0")


def _refuse_placeholders(prompt: Iterable[Message]) -> None:
    for message in prompt:
        if message["role"] == "user" and ">" in message["content"] and (found := _PLACEHOLDER.search(message["content"])):
            raise BadRow(
                f"has {found[0].strip()!r} in the place of an image, audio or video, which would be learnt as a word: the models here "
                "read text only; remove the row, or write it otherwise"
            )


def _check_answer(turns: list[Message], name: str) -> None:
    if not turns[0]["role"] == turns[-1]["role"] == "assistant":
        raise BadRow(f"the {name} does not start and end with an assistant turn")
    if not any(_is_learnt(message) for message in turns) and name == "rejected":
        raise BadRow("the rejected answer has weight 0")


def _check_weights(turns: Iterable[Message], table: TableName) -> None:
    if weights := [weight for message in turns if (weight := message.get("weight", 1)) not in (0, 1)]:
        raise BadRow(f"has a turn of weight {weights[0]}; other weights than 0 and 1 are for the sft table, not '{table}'")


def _is_learnt(message: Message) -> bool:
    return message["role"] == "assistant" and bool(message.get("weight", 1))
