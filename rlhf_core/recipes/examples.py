"""Prepared tables to the token rows a recipe trains on. What a loss makes of them belongs to the recipes."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from data_processing.errors import DataError
from data_processing.schemas import read_table
from data_processing.turns import Message, messages_of, tools_of
from rlhf_core.batching.refused import render_rows
from rlhf_core.batching.rows import TokenRow, apply_overlong
from rlhf_core.batching.templates import Renderer
from rlhf_core.settings.training import TrainingConfig

TrainingTable = Literal["sft", "preference", "unpaired", "stepwise"]

MADE_BY: Mapping[TrainingTable, str] = {
    "sft": "data.procedures.sft_rows or sources in data.sft",
    "preference": "data.procedures.preference_pairs or sources in data.preference",
    "unpaired": "sources in data.unpaired",
    "stepwise": "sources in data.stepwise",
}


@dataclass(frozen=True, slots=True)
class Example:
    """What one term of a loss is computed on: one conversation, the chosen and the rejected row of a pair, or one judged answer.

    `margin` is how much better the chosen response is (0 where the table does not say); `reference_logps` are the
    reference's summed response log-probs (nats), a number a row, where a recipe needs them. `desirable` is how a single answer
    was judged; None for all else. `labels` say of each target, which ends a step, whether the step is right. `source` is where the
    row comes from, `pass_rate` how often it was got right, where the table says so.
    """

    id: str
    rows: tuple[TokenRow, ...]
    margin: float = 0.0
    reference_logps: tuple[float, ...] = ()
    desirable: bool | None = None
    labels: tuple[bool, ...] = ()
    source: str = ""
    pass_rate: float | None = None

    @property
    def are_desirable(self) -> tuple[bool, ...]:
        """Of each row whether it is an answer to be made likelier: the first of a pair is, the second is not."""
        return (True, False)[: len(self.rows)] if self.desirable is None else (self.desirable,)

    @property
    def length_tokens(self) -> int:
        """Tokens of all rows."""
        return sum(len(row) for row in self.rows)

    @property
    def padded_tokens(self) -> int:
        """Positions its rows take when padded to the longest of them."""
        return len(self.rows) * max(len(row) for row in self.rows)


@dataclass(frozen=True, slots=True)
class Splits:
    """What a run trains on and is measured on; `n_dropped` overlong rows and the `refused` ones (a line each) are in neither."""

    train: list[Example]
    validation: list[Example]
    n_dropped: int
    refused: tuple[str, ...] = ()

    def __add__(self, other: Splits) -> Splits:
        """Both, one after the other."""
        return Splits(
            self.train + other.train,
            self.validation + other.validation,
            self.n_dropped + other.n_dropped,
            self.refused + other.refused,
        )


def conversation(renderer: Renderer, row: Mapping[str, Any], *, last_only: bool = False, condition: str | None = None) -> Example:
    """A row of the sft table: the assistant turns, or the last only, are the targets. Raises `DataError` where there is none.

    `condition` is what stands below the first question, with the row's own condition for `{condition}`.
    """
    messages = messages_of(row, "messages")
    if condition is not None:
        messages = _conditioned(messages, condition, row.get("condition"))
    tokens = renderer.conversation(messages, tools_of(row), last_only=last_only)
    if not tokens.n_targets:
        raise DataError("not a single token to learn from: a row needs an assistant turn")
    return Example(row["id"], (tokens,))


def _conditioned(messages: Sequence[Message], text: str, condition: str | None) -> list[Message]:
    if condition is None:
        raise DataError("it has no condition, and sft.condition is set: give it a column 'condition', or leave sft.condition out")
    asked = next((i for i, message in enumerate(messages) if message["role"] == "user"), None)
    if asked is None:
        raise DataError("it has no user turn for sft.condition to stand in: take it out, or leave sft.condition out")
    content = f"{messages[asked]['content']}\n\n{text.replace('{condition}', condition)}"
    return [*messages[:asked], {**messages[asked], "content": content}, *messages[asked + 1 :]]


def windows(example: Example, tokens: int) -> list[Example]:
    """A text without turns in pieces of at most `tokens` tokens; anything else, and what is no longer, as it is.

    Each piece begins with the last token of the one before, so every token but the text's first is learnt once.
    """
    [row] = example.rows
    if len(row) <= tokens or not all(row.is_target[1:]):
        return [example]
    pieces = [row.ids[start : start + tokens] for start in range(0, len(row) - 1, tokens - 1)]
    rows = [TokenRow.from_prompt_response(ids[:1], ids[1:]) for ids in pieces]
    return [replace(example, id=f"{example.id}[{number}]", rows=(piece,)) for number, piece in enumerate(rows)]


def pair(renderer: Renderer, row: Mapping[str, Any]) -> Example:
    """A row of the preference table: (chosen, rejected), each behind the shared prompt. Raises `DataError` for a tie."""
    chosen, rejected = (_side(renderer, row, name) for name in ("chosen", "rejected"))
    if chosen == rejected:
        raise DataError("chosen and rejected have the same tokens: they differ at most in what the chat template does not render")
    return Example(row["id"], (chosen, rejected), margin=row["margin"] or 0.0)


def judged_answer(renderer: Renderer, row: Mapping[str, Any]) -> Example:
    """A row of the unpaired table: one answer behind its prompt, and whether it is desirable."""
    return Example(row["id"], (_side(renderer, row, "response"),), desirable=row["desirable"])


def steps(renderer: Renderer, row: Mapping[str, Any], separator: str = "\n\n") -> Example:
    """A row of the stepwise table: an answer whose steps are judged, behind its prompt."""
    contents = [step["content"] for step in row["steps"]]
    tokens = renderer.steps(messages_of(row, "prompt"), contents, separator, tools_of(row))
    return Example(row["id"], (tokens,), labels=tuple(row["labels"]))


def _side(renderer: Renderer, row: Mapping[str, Any], name: str) -> TokenRow:
    return renderer.prompt_and_response(messages_of(row, "prompt"), messages_of(row, name), tools_of(row))


def read_examples(
    data: Path,
    table: TrainingTable,
    split: str,
    render: Callable[[Mapping[str, Any]], Example],
    max_refused_fraction: float = 0.0,
) -> tuple[list[Example], list[str]]:
    """The rows of one split, rendered, and a line for each that cannot be.

    A missing validation split has no rows; a missing training split is a `DataError` that names the settings that make it.
    Raises as `render_rows` does.
    """
    path = data / table / f"{split}.parquet"
    if not path.is_file():
        if split == "validation":
            return [], []
        raise DataError(
            f"{data} has no {table}/{split}.parquet: this stage trains on the '{table}' table, which the prepare_data stage "
            f"makes from {MADE_BY[table]}; set one of them and run prepare_data again"
        )

    def rendered(row: Mapping[str, Any]) -> Example:
        return replace(render(row), source=row["source"] or "", pass_rate=row["pass_rate"])

    return render_rows(table, read_table(table, path).to_pylist(), rendered, max_refused_fraction)


def digest(examples: Sequence[Example]) -> str:
    """sha256 of ids, tokens, targets, weights, margins, judgements and what an order hangs on.

    It changes with the table, the template and the tokenizer.
    """
    sha = hashlib.sha256()
    for example in examples:
        facts = [example.margin, example.desirable, example.source, example.pass_rate]
        sha.update(json.dumps([example.id, [len(row) for row in example.rows], *facts]).encode())
        for row in example.rows:
            sha.update(array("q", row.ids))
            sha.update(bytes(row.is_target))
            sha.update(array("d", row.weights or ()))
        sha.update(bytes(example.labels))
    return sha.hexdigest()


def keep_fitting(examples: Sequence[Example], config: TrainingConfig) -> list[Example]:
    """The examples whose every row fits `max_length_tokens`; raises `DataError` as `overlong` asks."""
    deciding = [max(example.rows, key=len) for example in examples]
    ids = [example.id for example in examples]
    kept = apply_overlong(deciding, ids, config.max_length_tokens, config.overlong, config.max_dropped_fraction)
    return [examples[i] for i in kept]
