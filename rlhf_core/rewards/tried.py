"""Rewards tried on answers that are there already: what each source says of them, and how long it takes. Nothing is trained."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from data_processing.config import TableSource
from data_processing.errors import DataError
from data_processing.sources.recognise import recognise
from data_processing.sources.rows import SourceRows
from data_processing.turns import extra_of, messages_of
from rlhf_core.rewards.base import ScoredResponse, Scores
from rlhf_core.rewards.build import Around, build_scorer
from rlhf_core.settings.rewards.base import RewardSettings

# What an answer of a table is: the first two come in pairs.
CHOSEN, REJECTED, ANSWER, LABEL = "chosen", "rejected", "answer", "label"


@dataclass(frozen=True, slots=True)
class TriedAnswer:
    """An answer of the table: of which row it is, as what, and as scorers see it."""

    row: str
    side: str
    response: ScoredResponse


@dataclass(frozen=True, slots=True)
class TriedSource:
    """What a source said of all answers, in order, and the seconds that it took for them, without being loaded."""

    name: str
    scores: Scores
    seconds: float


def read_answers(path: Path, count: int, tokenizer: Any = None) -> list[TriedAnswer]:
    """The answers of the first `count` rows of a file or folder of any shape that `data` takes, each with label and columns.

    A pair has two. Rows without an answer are tried with their label for one. `tokenizer` gives the tokens that models read and
    lengths count; without it a token is a word. Raises `ConfigError` and `DataError` where the rows cannot be read.
    """
    rows = SourceRows("prompts", TableSource(path=str(path)), "--on", max_bad_fraction=1.0)
    found = [answer for row, _, raw in islice(rows, count) for answer in _answers(row, raw.values or {}, tokenizer)]
    if not found:
        raise DataError(f"--on {path}: no row has an answer or a label to try rewards on; {rows.why_none()}")
    return found


def try_rewards(sources: Sequence[RewardSettings], answers: Sequence[TriedAnswer], around: Around) -> Iterator[TriedSource]:
    """Each source on all answers, one after the other; raises what it raises."""
    names: list[str] = []
    for source in sources:
        scorer = build_scorer(source, around)
        start = time.monotonic()
        scores = Scores.of(scorer.score([answer.response for answer in answers]))
        name = source.name or scorer.name
        names.append(name)
        yield TriedSource(f"{name}_{names.count(name)}" if names.count(name) > 1 else name, scores, time.monotonic() - start)


def _answers(row: dict[str, Any], values: dict[str, Any], tokenizer: Any) -> Iterator[TriedAnswer]:
    texts = {side: text for side, text in _texts(values) if text is not None}
    if not texts and row["label"] is not None:
        texts = {LABEL: row["label"]}
    prompt = messages_of(row, "prompt")
    for side, text in texts.items():
        prompt_ids, response_ids = _ids(prompt, text, tokenizer)
        response = ScoredResponse(row["id"], prompt, row["label"], prompt_ids, response_ids, text, extra_of(row))
        yield TriedAnswer(row["id"], side, response)


def _texts(values: dict[str, Any]) -> Iterator[tuple[str, str | None]]:
    """The answers of a source's row by what they are."""
    record, _ = recognise(values, "preference")
    if record.response is None:
        return
    if record.rejected is not None:
        yield CHOSEN, _last(record.response)
        yield REJECTED, _last(record.rejected)
    else:
        yield ANSWER, _last(record.response)


def _last(turns: Sequence[dict[str, Any]] | None) -> str | None:
    return turns[-1]["content"] if turns else None


def _ids(prompt: Sequence[dict[str, Any]], text: str, tokenizer: Any) -> tuple[list[int], list[int]]:
    """Token ids of both, as they are sampled; words are numbered where there is no tokenizer."""
    if tokenizer is None:
        return [0], list(range(len(text.split()))) or [0]
    from rlhf_core.batching.templates import Renderer

    renderer = Renderer(tokenizer)
    asked = renderer.prompt_ids(list(prompt))
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return asked, [*ids, *renderer.stop_ids[:1]]
