"""What an evaluation is given and what it passes from hand to hand: the job, and the answers a model gave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_processing.schemas import TableName, content_id
from evaluation.config import EvaluateConfig
from evaluation.rows import DrawnRow, RowCounts, count_rows, draw_rows, fitting
from rlhf_core.batching.rows import TokenRow
from rlhf_core.events import EventLog
from rlhf_core.rewards.base import ScoredResponse


@dataclass(frozen=True)
class EvaluationJob:
    """One model to be measured; `model_name` stands in the predictions table.

    All paths are artifact folders. Code in them is trusted: the base_model stage lets it into the store only where allowed.
    `counts` says by table which rows were measured; it fills while they are.
    """

    config: EvaluateConfig
    model: Path
    model_name: str
    base: Path
    data: Path
    reward_model: Path | None
    output: Path
    seed: int
    events: EventLog
    counts: dict[TableName, RowCounts] = field(default_factory=dict)

    def draw(self, table: pa.Table) -> pa.Table:
        """The rows of a test split that this evaluation is to measure; the same for every model that has the seed."""
        return table.take(draw_rows(table["id"].to_pylist(), _sources(table), self.config.max_prompts, self.seed))

    def keep_fitting(
        self, name: TableName, table: pa.Table, drawn: pa.Table, tokens: Sequence[int], new_tokens: int
    ) -> list[int]:
        """Indices of the drawn rows that fit the model; those that do not are counted, with a warning.

        `tokens` are the rows' lengths. Raises as `evaluation.rows.fitting` does.
        """
        rows = [DrawnRow(*row) for row in zip(drawn["id"].to_pylist(), _sources(drawn), tokens, strict=True)]
        kept = fitting(name, rows, self.model, new_tokens=new_tokens, max_dropped_fraction=self.config.max_dropped_fraction)
        counts = self.counts[name] = count_rows(rows, kept, _sources(table))
        if counts.left_out:
            self.events.warn(
                f"table '{name}', split 'test': {len(counts.left_out)} of {len(rows)} rows are too long for the model and left out: "
                + ", ".join(map(str, counts.left_out))
            )
        return kept


def _sources(table: pa.Table) -> list[str]:
    return table["source"].to_pylist() if "source" in table.column_names else [""] * table.num_rows


@dataclass(frozen=True, slots=True)
class Prompt:
    """A row of the prompts table and its tokens under the model's chat template."""

    id: str
    messages: Sequence[dict[str, str]]
    label: str | None
    source: str
    ids: list[int]


@dataclass(frozen=True, slots=True)
class Answer:
    """One generated answer: `response_ids` as sampled, the stop token included; `text` without special tokens."""

    prompt: Prompt
    decoding: str
    sample: int
    response_ids: list[int]
    text: str
    finish_reason: str

    @property
    def id(self) -> str:
        """Id of the prediction: prompt, decoding and sample number, the same for every model."""
        return content_id([self.prompt.id, self.decoding, self.sample])

    @property
    def row(self) -> TokenRow:
        """Prompt and response as one row whose targets are the response."""
        return TokenRow.from_prompt_response(self.prompt.ids, self.response_ids)

    def to_scored_response(self) -> ScoredResponse:
        """The answer as rewards see it."""
        prompt = self.prompt
        return ScoredResponse(prompt.id, prompt.messages, prompt.label, prompt.ids, self.response_ids, self.text)

    def to_row(self, model_name: str) -> dict[str, Any]:
        """A row of the `predictions` table."""
        return {
            "id": self.id,
            "prompt_id": self.prompt.id,
            "source": self.prompt.source,
            "model": model_name,
            "decoding": self.decoding,
            "prompt": list(self.prompt.messages),
            "response": self.text,
            "label": self.prompt.label,
            "finish_reason": self.finish_reason,
            "prompt_tokens": len(self.prompt.ids),
            "response_tokens": len(self.response_ids),
        }
