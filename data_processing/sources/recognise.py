"""The row shapes people have. Adding one is one function and one line in `_ANSWERED` or `_PAIRS`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from data_processing.schemas import TableName
from data_processing.sources.messages import BadRow, Message, conversation, json_messages, messages, prompt, text, turns_in
from data_processing.sources.record import Record


class Shape(NamedTuple):
    """How rows with the columns `needs` are read; `uses` are all the columns that this looks at."""

    needs: frozenset[str]
    uses: frozenset[str]
    read: Callable[[dict[str, Any]], Record]


def recognise(row: dict[str, Any], table: TableName) -> tuple[Record, Shape]:
    """The record of a row, by the first shape whose columns it has and that gives an answer where the table has answers.

    Without any it is the record of the last such shape. Raises `BadRow` with the reason where no shape fits.
    """
    present = {name: value for name, value in row.items() if value is not None} if None in row.values() else row
    found: tuple[Record, Shape] | None = None
    for shape in SHAPES_BY_TABLE.get(table, SHAPES):
        if shape.needs <= present.keys():
            found = shape.read(present), shape
            if table == "prompts" or found[0].response is not None:
                break
    if found is None:
        shapes = "; ".join(" + ".join(sorted(shape.needs)) for shape in SHAPES)
        raise BadRow(f"columns {sorted(present)} fit no known shape ({shapes}); rename them with the source's 'columns'")
    return found


def _from_messages(messages: list[Message]) -> Record:
    """The last assistant turn is the response; without one, everything is the prompt."""
    if messages[-1]["role"] == "assistant":
        return Record(messages[:-1], messages[-1:])
    return Record(messages)


def _messages(row: dict[str, Any]) -> Record:
    return _from_messages(conversation(row["messages"], "messages"))


def _sharegpt(row: dict[str, Any]) -> Record:
    return _from_messages(conversation(row["conversations"], "conversations"))


def _prompt_response(row: dict[str, Any]) -> Record:
    return Record(prompt(row["prompt"], "prompt"), _answer(row, "response", beside="prompt"))


def _prompt(row: dict[str, Any]) -> Record:
    return Record(prompt(row["prompt"], "prompt"))


def _question_responses(row: dict[str, Any]) -> Record:
    """`response_j` is the better one, as in preference sets made from votes."""
    better = _answer(row, "response_j", beside="question")
    worse = _answer(row, "response_k", beside="question") if "response_k" in row else None
    return Record(prompt(row["question"], "question"), better, worse)


def _answer(row: dict[str, Any], column: str, beside: str) -> list[Message]:
    """An answer beside a prompt. A text is kept to the letter, unless it is JSON of messages and so is the prompt (as in CSV)."""
    turns = json_messages(row[column])
    return messages(turns if turns and json_messages(row[beside]) else row[column], column, "assistant")


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
    given = prompt(row["prompt"], "prompt") if "prompt" in row else []
    turns = turns_in(row["chosen"]), turns_in(row["rejected"])
    sides = turns if all(turns) and _are_turns(row, *turns) else (row["chosen"], row["rejected"])
    chosen, rejected = messages(sides[0], "chosen", "assistant"), messages(sides[1], "rejected", "assistant")
    if chosen[0]["role"] == rejected[0]["role"] == "assistant":
        if given:
            return Record(given, chosen, rejected)
        if chosen[0] != rejected[0]:
            raise BadRow("has no 'prompt', and 'chosen' and 'rejected' hold answers only")
    shared = _shared_prefix(chosen, rejected)
    if not shared or len(shared) in (len(chosen), len(rejected)):
        raise BadRow("'chosen' and 'rejected' are no two answers to the same beginning")
    if given and _said(given[-1]) != _said(shared[-1]):
        raise BadRow("'prompt' is not what 'chosen' and 'rejected' share")
    # The longer one also has what the other leaves out, such as a system message or earlier turns.
    return Record(max(shared, given, key=len), chosen[len(shared) :], rejected[len(shared) :])


def _are_turns(row: dict[str, Any], chosen: list[Any], rejected: list[Any]) -> bool:
    """Whether texts that hold turns are meant as such: an answer beside a text may well be JSON or a transcript."""
    opening = chosen[0].get("role", chosen[0].get("from"))
    share_prompt = chosen[0] == rejected[0] and opening not in ("assistant", "gpt")
    return "prompt" not in row or bool(json_messages(row["prompt"])) or share_prompt


def _shared_prefix(first: list[Message], second: list[Message]) -> list[Message]:
    same = [a == b for a, b in zip(first, second, strict=False)]
    return first[: same.index(False)] if False in same else first[: len(same)]


def _said(message: Message) -> str:
    return " ".join(message["content"].split())


def _shape(read: Callable[[dict[str, Any]], Record], needs: set[str], takes: set[str] | None = None) -> Shape:
    return Shape(frozenset(needs), frozenset(needs | (takes or set())), read)


_ANSWERED = (
    _shape(_messages, {"messages"}),
    _shape(_sharegpt, {"conversations"}),
    _shape(_instruction, {"instruction", "output"}, {"input"}),
    _shape(_prompt_response, {"prompt", "response"}),
)
_PAIRS = (
    _shape(_preference, {"chosen", "rejected"}, {"prompt"}),
    _shape(_question_responses, {"question", "response_j"}, {"response_k"}),
)
_BARE = (_shape(_prompt, {"prompt"}),)

# The first shape that fits is used: conversations come before answers that were only compared, but in the table of pairs.
SHAPES = (*_ANSWERED, *_PAIRS, *_BARE)
SHAPES_BY_TABLE: dict[TableName, tuple[Shape, ...]] = {"preference": (*_PAIRS, *_ANSWERED, *_BARE)}
