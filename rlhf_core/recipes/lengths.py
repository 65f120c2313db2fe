"""How long prepared rows are in tokens, and which of them the stages that follow would cut: seen before any of them starts.

Rows are rendered as the stages render them. `python -m rlhf_core.recipes.lengths ASKED.json FOUND.json` is the process that a
run starts for it once base model and data are there.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from data_processing.errors import AlignflowError
from data_processing.schemas import TableName, read_table
from data_processing.turns import TEXT_ROLE, messages_of, tools_of

MOST_ROWS = 20_000
_NAMED_ROWS = 5

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Window:
    """What node `node` takes of a table's split: rows of at most `tokens` (None: the model's positions) less `answer_tokens`.

    Longer rows are an error where `drops` is false, and where they are more than `max_dropped_fraction` of the rows; but not in a
    split of more than `draws` rows (None: of any), of which the node draws that many. Where it `cuts_texts`, texts without turns are
    never too long. `setting` names what the limit comes from.
    """

    node: str
    table: TableName
    split: Split
    tokens: int | None
    answer_tokens: int
    drops: bool
    max_dropped_fraction: float
    setting: str
    draws: int | None = None
    cuts_texts: bool = False


class _Row(NamedTuple):
    name: str
    tokens: int
    is_text: bool


@dataclass(frozen=True)
class Found:
    """`lines` for people, a histogram a table and what each node cuts of it; `errors` are what nodes would refuse."""

    lines: list[str]
    errors: list[str]


def find_overlong(data: Path, model: Path, windows: Sequence[Window]) -> Found:
    """Measure the rows of folder `data` under the template of folder `model` against `windows`.

    Rows that the template refuses are left to the stages, which count them.
    """
    from rlhf_core.batching.templates import Renderer
    from rlhf_core.models.folder import max_positions
    from rlhf_core.models.load import load_tokenizer

    renderer, positions = Renderer(load_tokenizer(model, trust_remote_code=True)), max_positions(model)
    measured: dict[tuple[TableName, Split], list[_Row]] = {}
    lines, errors = list[str](), list[str]()
    for window in windows:
        place = window.table, window.split
        if place not in measured:
            if not (path := data / window.table / f"{window.split}.parquet").is_file():
                continue
            measured[place] = list(_lengths(window.table, path, renderer))
            lines.append(_histogram(place, [row.tokens for row in measured[place]]))
        tokens = window.tokens or positions
        if tokens is None:
            continue
        room = tokens - window.answer_tokens
        overlong = [row for row in measured[place] if row.tokens > room and not (window.cuts_texts and row.is_text)]
        if overlong:
            text = _told(window, room, overlong, len(measured[place]))
            n_rows = len(measured[place])
            refused = not window.drops or len(overlong) > window.max_dropped_fraction * n_rows
            refused = refused and (window.draws is None or n_rows <= window.draws)
            (errors if refused else lines).append(text)
    return Found(lines, errors)


def _lengths(table: TableName, path: Path, renderer: Any) -> Iterator[_Row]:
    """The tokens of each row, of the longer side of a pair; of a seeded sample where there are more than `MOST_ROWS`."""
    rows = read_table(table, path)
    if rows.num_rows > MOST_ROWS:
        rows = rows.take(sorted(random.Random(0).sample(range(rows.num_rows), MOST_ROWS)))
    measure = _MEASURES[table]
    for row in rows.to_pylist():
        try:
            yield _Row(row["id"], measure(renderer, row), table == "sft" and row["messages"][0]["role"] == TEXT_ROLE)
        except AlignflowError:
            continue


def _conversation(renderer: Any, row: Mapping[str, Any]) -> int:
    from rlhf_core.recipes.examples import conversation

    return len(conversation(renderer, row).rows[0])


def _pair(renderer: Any, row: Mapping[str, Any]) -> int:
    from rlhf_core.recipes.examples import pair

    return max(map(len, pair(renderer, row).rows))


def _answer(renderer: Any, row: Mapping[str, Any]) -> int:
    from rlhf_core.recipes.examples import judged_answer

    return len(judged_answer(renderer, row).rows[0])


def _steps(renderer: Any, row: Mapping[str, Any]) -> int:
    from rlhf_core.recipes.examples import steps

    return len(steps(renderer, row).rows[0])


def _prompt(renderer: Any, row: Mapping[str, Any]) -> int:
    return len(renderer.prompt_ids(messages_of(row, "prompt"), tools_of(row)))


_MEASURES: dict[str, Callable[[Any, Mapping[str, Any]], int]] = {
    "sft": _conversation,
    "preference": _pair,
    "unpaired": _answer,
    "stepwise": _steps,
    "prompts": _prompt,
}


def _histogram(place: tuple[str, str], lengths: Sequence[int]) -> str:
    """Rows by length, in ranges that end at powers of two."""
    table, split = place
    if not lengths:
        return f"lengths of {table}/{split}: no row can be rendered"
    bounds = [2**power for power in range(max(min(lengths) - 1, 1).bit_length(), max(max(lengths) - 1, 1).bit_length() + 1)]
    counts = [sum(bound // 2 < max(length, 2) <= bound for length in lengths) for bound in bounds]
    ranges = ", ".join(f"up to {bound}: {count}" for bound, count in zip(bounds, counts, strict=True) if count)
    ordered = sorted(lengths)
    return f"lengths of {table}/{split}, {len(lengths)} rows in tokens: median {ordered[len(ordered) // 2]}, longest {ordered[-1]}; {ranges}"


def _told(window: Window, room: int, overlong: Sequence[_Row], n_rows: int) -> str:
    longest = sorted(overlong, key=lambda row: -row.tokens)
    names = ", ".join(f"'{row.name}' ({row.tokens} tokens)" for row in longest[:_NAMED_ROWS])
    more = ", ..." if len(longest) > _NAMED_ROWS else ""
    return (
        f"{window.node}: {len(overlong)} of {n_rows} rows of {window.table}/{window.split} have more than {room} tokens "
        f"({window.setting}): {names}{more}"
    )


if __name__ == "__main__":
    asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    windows = [Window(**window) for window in asked["windows"]]
    found = find_overlong(Path(asked["data"]), Path(asked["model"]), windows)
    Path(sys.argv[2]).write_text(json.dumps(asdict(found)), encoding="utf-8")
