"""What an evaluation is given and what it passes from hand to hand: the job, and the answers a model gave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_processing.schemas import TableName, content_id
from evaluation.config import EvaluateConfig
from evaluation.row_selection import RowCounts
from rlhf_core.batching.rows import TokenRow
from rlhf_core.events import EventLog
from rlhf_core.rewards.base import ScoredResponse

if TYPE_CHECKING:
    from rlhf_core.models.modules import PolicyModule


@dataclass(frozen=True)
class EvaluationJob:
    """One model to be measured; `model_name` stands in the predictions table.

    All paths are artifact folders. Code in them is trusted: the base_model stage lets it into the store only where allowed.
    `generator` and `baseline` are the frozen model and the baselines of VR-CLI. `counts` says by table which rows were measured, `held_out` holds the rows for perplexity: both fill while they are read.
    `loaded` is the model that computes log-probs, by its folder.
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
    held_out: list[tuple[str, TokenRow]] = field(default_factory=list)
    loaded: dict[Path, PolicyModule] = field(default_factory=dict)
    generator: Path | None = None
    baseline: Path | None = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """A row of the prompts table and its tokens under the model's chat template; `columns` are its source's further ones."""

    id: str
    messages: Sequence[dict[str, str]]
    label: str | None
    source: str
    ids: list[int]
    columns: Mapping[str, Any] = field(default_factory=dict)


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
        return ScoredResponse(prompt.id, prompt.messages, prompt.label, prompt.ids, self.response_ids, self.text, prompt.columns)

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
