"""The row shapes people have. Adding one is one function and one line in `RECOGNISERS`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from data_processing.sources.messages import BadRow, Message, conversation, text


class Record(NamedTuple):
    """What a row says, whatever its shape: a prompt, perhaps a response, perhaps a worse one.

    A prompt never ends with an assistant turn; responses start and end with one.
    """

    prompt: list[Message]
    response: list[Message] | None = None
    rejected: list[Message] | None = None


def recognise(row: dict[str, Any]) -> Record:
    """The record of a row, by the first shape whose columns it has; raises `BadRow` with the reason."""
    present = {name: value for name, value in row.items() if value is not None} if None in row.values() else row
    for columns, read in RECOGNISERS:
        if columns <= present.keys():
            return _checked(read(present))
    shapes = "; ".join(" + ".join(sorted(columns)) for columns, _ in RECOGNISERS)
    raise BadRow(f"columns {sorted(present)} fit no known shape ({shapes}); rename them with the source's 'columns'")


def _checked(record: Record) -> Record:
    if "user" not in [message["role"] for message in record.prompt]:
        raise BadRow("has no user turn before the answer")
    if record.prompt[-1]["role"] == "assistant":
        raise BadRow("the prompt ends with an assistant turn")
    for name, response in (("response", record.response), ("rejected", record.rejected)):
        if response is not None and not response[0]["role"] == response[-1]["role"] == "assistant":
            raise BadRow(f"the {name} does not start and end with an assistant turn")
    if record.response is not None and record.response == record.rejected:
        raise BadRow("chosen and rejected are the same")
    return record


def _from_messages(messages: list[Message]) -> Record:
    """The last assistant turn is the response; without one, everything is the prompt."""
    if messages[-1]["role"] == "assistant":
        return Record(messages[:-1], messages[-1:])
    return Record(messages)


def _messages(row: dict[str, Any]) -> Record:
    return _from_messages(conversation(row["messages"], "messages", "user"))


def _sharegpt(row: dict[str, Any]) -> Record:
    return _from_messages(conversation(row["conversations"], "conversations", "user"))


def _prompt_response(row: dict[str, Any]) -> Record:
    prompt = conversation(row["prompt"], "prompt", "user")
    return Record(prompt, conversation(row["response"], "response", "assistant"))


def _prompt(row: dict[str, Any]) -> Record:
    return Record(conversation(row["prompt"], "prompt", "user"))


def _question_responses(row: dict[str, Any]) -> Record:
    """`response_j` is the better one, as in preference sets made from votes."""
    question = conversation(row["question"], "question", "user")
    better = conversation(row["response_j"], "response_j", "assistant")
    worse = conversation(row["response_k"], "response_k", "assistant") if "response_k" in row else None
    return Record(question, better, worse)


def _instruction(row: dict[str, Any]) -> Record:
    extra = row.get("input", "")
    has_input = not isinstance(extra, str) or bool(extra.strip())
    parts = [text(row["instruction"], "instruction"), *([text(extra, "input")] if has_input else [])]
    return Record(
        [{"role": "user", "content": "\n\n".join(parts)}],
        [{"role": "assistant", "content": text(row["output"], "output")}],
    )


def _preference(row: dict[str, Any]) -> Record:
    """Answers alone beside a prompt, or two whole conversations that share their beginning."""
    chosen = conversation(row["chosen"], "chosen", "assistant")
    rejected = conversation(row["rejected"], "rejected", "assistant")
    given = conversation(row["prompt"], "prompt", "user") if "prompt" in row else []
    if chosen[0]["role"] == rejected[0]["role"] == "assistant":
        if not given:
            raise BadRow("has no 'prompt', and 'chosen' and 'rejected' hold answers only")
        return Record(given, chosen, rejected)
    shared = _shared_prefix(chosen, rejected)
    if not shared or len(shared) in (len(chosen), len(rejected)):
        raise BadRow("'chosen' and 'rejected' are no two answers to the same beginning")
    if given and _said(given[-1]) != _said(shared[-1]):
        raise BadRow("'prompt' is not what 'chosen' and 'rejected' share")
    # The longer one also has what the other leaves out, such as a system message or earlier turns.
    return Record(max(shared, given, key=len), chosen[len(shared) :], rejected[len(shared) :])


def _shared_prefix(first: list[Message], second: list[Message]) -> list[Message]:
    same = [a == b for a, b in zip(first, second, strict=False)]
    return first[: same.index(False)] if False in same else first[: len(same)]


def _said(message: Message) -> str:
    return " ".join(message["content"].split())


# The first shape whose columns a row has is used, so richer shapes come first.
RECOGNISERS: tuple[tuple[frozenset[str], Callable[[dict[str, Any]], Record]], ...] = (
    (frozenset({"chosen", "rejected"}), _preference),
    (frozenset({"question", "response_j"}), _question_responses),
    (frozenset({"messages"}), _messages),
    (frozenset({"conversations"}), _sharegpt),
    (frozenset({"instruction", "output"}), _instruction),
    (frozenset({"prompt", "response"}), _prompt_response),
    (frozenset({"prompt"}), _prompt),
)
