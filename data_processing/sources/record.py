"""What a source row says, whatever its shape; and what it must say to be a row of a table."""

from __future__ import annotations

from typing import NamedTuple

from data_processing.schemas import TableName
from data_processing.sources.messages import BadRow, Message


class Record(NamedTuple):
    """A prompt, perhaps a response, perhaps a worse one."""

    prompt: list[Message]
    response: list[Message] | None = None
    rejected: list[Message] | None = None


def check(record: Record, table: TableName) -> None:
    """Raise `BadRow` with the reason where no stage could use the record as a row of the table, whatever the chat template.

    A prompt has a user turn and no assistant turn at its end; responses start and end with an assistant turn. What a
    template makes of it (roles that it refuses, turns that it trims) is for the stages to see.
    """
    roles = [message["role"] for message in record.prompt]
    if "user" not in roles:
        raise BadRow("has no user turn before the answer")
    if roles[-1] == "assistant":
        raise BadRow("the prompt ends with an assistant turn")
    if table == "prompts":
        return
    if record.response is None:
        raise BadRow("has no answer: it ends with a prompt")
    _check_answer(record.response, "response")
    if table == "preference":
        if record.rejected is None:
            raise BadRow("has no rejected answer (columns chosen + rejected, or question + response_j + response_k)")
        _check_answer(record.rejected, "rejected")
        if record.response == record.rejected:
            raise BadRow("chosen and rejected are the same")
    # All assistant turns of a conversation are learnt, and the first would have nothing before it.
    if table == "sft" and roles[0] == "assistant":
        raise BadRow("starts with an assistant turn: put a user or system turn before it, or remove it")


def _check_answer(turns: list[Message], name: str) -> None:
    if not turns[0]["role"] == turns[-1]["role"] == "assistant":
        raise BadRow(f"the {name} does not start and end with an assistant turn")
