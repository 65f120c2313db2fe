"""The row shapes people have. Adding one is one function, or a pair of column names, and one line in `_ANSWERED` or `_PAIRS`."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

from data_processing.schemas import TableName
from data_processing.sources.messages import conversation, json_messages, messages, prompt, text, turns_in
from data_processing.sources.record import Record
from data_processing.sources.turn import BadRow, plain_turn
from data_processing.turns import TEXT_ROLE, Message

Read = Callable[[dict[str, Any]], Record | None]  # None: the cells are of another shape, whatever the columns

SYSTEM_COLUMNS = ("system", "system_prompt")
# What a row of any shape may have before its own turns.
BEFORE = frozenset({*SYSTEM_COLUMNS, "history"})
# Answers that only a table of pairs has a use for.
WORSE = frozenset({"rejected", "rejected_messages", "response_k"})
# A question and its answer by the names of their columns; where a row has several answers, the first pair counts.
_QUESTIONS_AND_ANSWERS = (
    ("prompt", "response"),
    ("prompt", "completion"),
    ("prompt", "solution"),
    ("prompt", "answer"),
    ("question", "response"),
    ("question", "solution"),
    ("question", "answer"),
    ("problem", "solution"),
    ("problem", "answer"),
    ("query", "response"),
    ("context_messages", "response"),
)
_KNOWN = (
    "messages; conversations; instruction + output or response; prompt, question or problem, alone or with response, completion, "
    "solution or answer; chosen + rejected; question + response_j; prompt + completions + labels; text"
)


class Shape(NamedTuple):
    """How rows with the columns `needs` are read; `uses` are all the columns that this looks at.

    Those of `answers` hold answers, so that a table of prompts has no use for them.
    """

    needs: frozenset[str]
    uses: frozenset[str]
    answers: frozenset[str]
    read: Read


def recognise(row: dict[str, Any], table: TableName) -> tuple[Record, Shape]:
    """The record of a row, by the first shape whose columns it has and that gives an answer where the table has answers.

    Without any it is the record of the last such shape. Raises `BadRow` with the reason where no shape fits.
    """
    present = {name: value for name, value in row.items() if value is not None} if None in row.values() else row
    found: tuple[Record, Shape] | None = None
    for shape in _fitting(table, frozenset(present)):
        if (read := shape.read(present)) is None:
            continue
        found = read, shape
        if table == "prompts" or found[0].response is not None:
            break
    if found is None:
        raise BadRow(f"columns {sorted(present)} fit no known shape ({_KNOWN}); rename them with the source's 'columns'")
    record, shape = found
    return (_with_before(record, present), shape) if BEFORE & present.keys() else found


@lru_cache(maxsize=1024)
def _fitting(table: TableName, columns: frozenset[str]) -> list[Shape]:
    """The shapes for rows with these columns, in the order in which they count."""
    return [shape for shape in SHAPES_BY_TABLE.get(table, SHAPES) if shape.needs <= columns]


def _with_before(record: Record, row: dict[str, Any]) -> Record:
    """The record with the row's system prompt and earlier turns in front."""
    systems = [row[name] for name in SYSTEM_COLUMNS if row.get(name) not in (None, "")]
    history = _history(row.get("history"))
    if not systems and not history:
        return record
    if record.prompt[0]["role"] == TEXT_ROLE:
        raise BadRow("has a system prompt or a history beside a 'text', which is no conversation")
    own = record.prompt[:1] if record.prompt[0]["role"] == "system" else []
    contents = {text(system, "system") for system in systems} | {message["content"] for message in own}
    if len(contents) > 1:
        raise BadRow(f"has two system prompts that differ (columns {', '.join(SYSTEM_COLUMNS)}, or a first message)")
    said = own or [plain_turn("system", content, "system") for content in contents]
    return record._replace(prompt=[*said, *history, *record.prompt[len(own) :]])


def _history(value: Any) -> list[Message]:
    """Earlier turns: pairs of a question and its answer, or messages."""
    if value is None or value in ([], ""):
        return []
    if not isinstance(value, list) or isinstance(value[0], dict):
        return messages(value, "history", "user")
    turns: list[Message] = []
    for i, pair in enumerate(value):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise BadRow(f"'history[{i}]' is no pair of a question and its answer")
        turns += [plain_turn(role, said, f"history[{i}]") for role, said in zip(("user", "assistant"), pair, strict=True)]
    return turns


def _from_messages(messages: list[Message]) -> Record:
    """The last assistant turn is the response; without one, everything is the prompt."""
    if messages[-1]["role"] == "assistant":
        return Record(messages[:-1], messages[-1:])
    return Record(messages)


def _conversation(column: str) -> Read:
    return lambda row: _from_messages(conversation(row[column], column))


def _prompt_only(column: str) -> Read:
    return lambda row: Record(prompt(row[column], column))


def _question_and_answer(asked: str, answered: str) -> Read:
    return lambda row: Record(prompt(row[asked], asked), _answer(row, answered, beside=asked))


def _question_responses(row: dict[str, Any]) -> Record:
    """`response_j` is the better one, as in preference sets made from votes."""
    better = _answer(row, "response_j", beside="question")
    worse = _answer(row, "response_k", beside="question") if "response_k" in row else None
    return Record(prompt(row["question"], "question"), better, worse)


def _answer(row: dict[str, Any], column: str, beside: str) -> list[Message]:
    """An answer beside a prompt. A text is kept to the letter, unless it is JSON of messages and so is the prompt (as in CSV)."""
    turns = json_messages(row[column])
    return messages(turns if turns and json_messages(row[beside]) else row[column], column, "assistant")


def _instruction(answer: str, *asides: str) -> Read:
    """An instruction; what it is about (the first of the columns `asides` that says something) is appended to it."""

    def read(row: dict[str, Any]) -> Record:
        given = [name for name in asides if not isinstance(row.get(name, ""), str) or row.get(name, "").strip()]
        parts = [text(row[name], name) for name in ("instruction", *given)]
        return Record([plain_turn("user", "\n\n".join(parts), "instruction")], messages(row[answer], answer, "assistant"))

    return read


def _preference(row: dict[str, Any]) -> Record:
    """Answers alone beside a prompt, or two whole conversations that share their beginning."""
    given = _asked(row)
    turns = turns_in(row["chosen"]), turns_in(row["rejected"])
    sides = turns if all(turns) and _are_turns(row, *turns) else (row["chosen"], row["rejected"])
    return _pair(given, messages(sides[0], "chosen", "assistant"), messages(sides[1], "rejected", "assistant"))


def _pair_of_conversations(row: dict[str, Any]) -> Record:
    sides = (conversation(row[name], name) for name in ("chosen_messages", "rejected_messages"))
    return _pair(_asked(row), *sides)


def _asked(row: dict[str, Any]) -> list[Message]:
    return next((prompt(row[name], name) for name in ("prompt", "question") if name in row), [])


def _pair_beside(column: str) -> Read:
    """Two answers of one message each beside the conversation that both continue."""

    def read(row: dict[str, Any]) -> Record | None:
        sides = [row[name] for name in ("chosen", "rejected")]
        if "prompt" in row or not all(isinstance(side, dict) for side in sides):
            return None
        chosen, rejected = (messages(side, name, "assistant") for side, name in zip(sides, ("chosen", "rejected"), strict=True))
        return _pair(conversation(row[column], column), chosen, rejected)

    return read


def _pair(given: list[Message], chosen: list[Message], rejected: list[Message]) -> Record:
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
    asked = row.get("prompt", row.get("question"))
    return asked is None or bool(json_messages(asked)) or share_prompt


def _shared_prefix(first: list[Message], second: list[Message]) -> list[Message]:
    same = [a == b for a, b in zip(first, second, strict=False)]
    return first[: same.index(False)] if False in same else first[: len(same)]


def _said(message: Message) -> str:
    return " ".join(message["content"].split())


def _text(row: dict[str, Any]) -> Record:
    """A text to be learnt as it is, as for continued pre-training."""
    return Record([plain_turn(TEXT_ROLE, row["text"], "text")])


def _steps(row: dict[str, Any]) -> Record:
    """An answer in steps, an assistant turn each, and a label for every step."""
    steps, labels = row["completions"], row["labels"]
    if not isinstance(steps, list) or not isinstance(labels, list) or not len(steps) == len(labels) > 0:
        raise BadRow("'completions' and 'labels' are no lists of the same length with at least one step")
    return Record(
        prompt(row["prompt"], "prompt"), [plain_turn("assistant", step, f"completions[{i}]") for i, step in enumerate(steps)]
    )


def _steps_elsewhere(row: dict[str, Any]) -> Record:
    raise BadRow(
        "is judged step by step (prompt + completions + labels), which only the stepwise table takes; give whole answers"
    )


def _shape(read: Read, needs: set[str], takes: set[str] | None = None, answers: set[str] | None = None) -> Shape:
    return Shape(frozenset(needs), frozenset(needs | (takes or set()) | (answers or set())), frozenset(answers or ()), read)


_ANSWERED = (
    _shape(_conversation("messages"), {"messages"}),
    _shape(_conversation("conversations"), {"conversations"}),
    _shape(_instruction("output", "input"), {"instruction", "output"}, {"input"}, {"output"}),
    _shape(_instruction("response", "context", "input"), {"instruction", "response"}, {"context", "input"}, {"response"}),
    *(_shape(_question_and_answer(*pair), set(pair), answers={pair[1]}) for pair in _QUESTIONS_AND_ANSWERS),
)
_PAIRS = (
    *(
        _shape(_pair_beside(name), {name, "chosen", "rejected"}, None, {"chosen", "rejected"})
        for name in ("conversations", "messages")
    ),
    *(
        _shape(_preference, {*asked, "chosen", "rejected"}, None, {"chosen", "rejected"})
        for asked in (("prompt",), ("question",), ())
    ),
    _shape(
        _pair_of_conversations, {"chosen_messages", "rejected_messages"}, {"prompt"}, {"chosen_messages", "rejected_messages"}
    ),
    _shape(_question_responses, {"question", "response_j"}, None, {"response_j", "response_k"}),
)
_STEPS, _STEPS_ELSEWHERE = (_shape(read, {"prompt", "completions", "labels"}) for read in (_steps, _steps_elsewhere))
_BARE = tuple(_shape(_prompt_only(name), {name}) for name in ("prompt", "question", "problem", "context_messages"))

# The first shape that fits is used: conversations come before answers that were only compared, but in the table of pairs.
SHAPES = (*_ANSWERED, *_PAIRS, _STEPS_ELSEWHERE, *_BARE, _shape(_text, {"text"}))
SHAPES_BY_TABLE: dict[TableName, tuple[Shape, ...]] = {
    "preference": (*_PAIRS, *_ANSWERED, _STEPS_ELSEWHERE, *_BARE),
    "stepwise": (_STEPS,),
    "prompts": (*_ANSWERED, *_PAIRS, *_BARE),
}
