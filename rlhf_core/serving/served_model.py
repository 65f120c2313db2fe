"""A reward model for those who ask by text: renders with the model's own chat template, and scores as the kind `reward_model` does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_processing.errors import DataError
from rlhf_core.batching.chat_template import Message
from rlhf_core.batching.templates import Renderer
from rlhf_core.credit.reward_model_folder import reward_model_scorer
from rlhf_core.credit.segment_reward_model import SegmentScorer
from rlhf_core.models.load import load_tokenizer
from rlhf_core.precision import Dtype
from rlhf_core.rewards.base import ScoredResponse
from rlhf_core.settings.training import Packing


@dataclass(frozen=True, slots=True)
class Asked:
    """One response to score: messages and text; or, with `prompt` None, a whole conversation as text with its control tokens.

    `is_cut` says that the response never ended: the token that ends a turn is then not read behind it.
    """

    prompt: Sequence[Message] | None
    text: str
    is_cut: bool = False


@dataclass(frozen=True, slots=True)
class Scored:
    """The raw score of a response of that many `tokens`, its prompt included; `failure` says why there is none."""

    score: float | None
    tokens: int = 0
    failure: str | None = None


class ServedModel:
    """The scorer in `folder`. A forward pass holds at most `batch_tokens`; what is longer than `max_length_tokens`, or the model's positions, fails."""

    def __init__(
        self, folder: Path, *, dtype: Dtype, batch_tokens: int, max_length_tokens: int, gpus: float, trust_remote_code: bool
    ) -> None:
        from transformers import AutoConfig

        self._renderer = Renderer(load_tokenizer(folder, trust_remote_code=trust_remote_code))
        self._scorer = reward_model_scorer(
            folder,
            folder,
            dtype=dtype,
            attention="auto",
            micro_batch_tokens=batch_tokens,
            packing=Packing.auto,
            gpus=gpus,
            trust_remote_code=trust_remote_code,
        )
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        self._longest = min(max_length_tokens, getattr(config, "max_position_embeddings", None) or max_length_tokens)

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines for people on how its batches are laid out."""
        return self._scorer.notes

    def score(self, asked: Sequence[Asked]) -> list[Scored]:
        """One entry a response, in order; a response that cannot be rendered fails alone. Raises as `RewardModelScorer.score` does."""
        rows = [self._row(one) for one in asked]
        right = [row for row in rows if isinstance(row, ScoredResponse)]
        scores = iter(self._scorer.score(right) if right else [])
        return [row if isinstance(row, Scored) else Scored(next(scores), _length(row)) for row in rows]

    def _row(self, one: Asked) -> ScoredResponse | Scored:
        try:
            prompt_ids, response_ids = self._ids(one)
        except (DataError, KeyError, TypeError) as error:  # what others send need not even be messages
            what = str(error) if isinstance(error, DataError) else f"messages need a role and a content ({error!r})"
            return Scored(None, failure=what)
        row = ScoredResponse("", one.prompt or (), None, prompt_ids, response_ids, one.text)
        if one.prompt is None and isinstance(self._scorer, SegmentScorer):
            return Scored(
                None, failure="this reward model reads the segments of a response: give messages, which say where it begins"
            )
        if not prompt_ids or not response_ids:
            return Scored(None, failure="there is no response to score: it has no token")
        if _length(row) > self._longest:
            return Scored(None, failure=f"prompt and response have {_length(row)} tokens, and at most {self._longest} are scored")
        return row

    def _ids(self, one: Asked) -> tuple[list[int], list[int]]:
        if one.prompt is None:
            ids: list[int] = self._renderer.tokenizer(one.text, add_special_tokens=False)["input_ids"]
            return ids[:-1], ids[-1:]
        row = self._renderer.prompt_and_response(_messages(one.prompt), [{"role": "assistant", "content": one.text}])
        start = row.prompt_length
        return row.ids[:start], row.ids[start : len(row) - one.is_cut]


def _messages(prompt: Sequence[Message]) -> list[Message]:
    for message in prompt:
        if not isinstance(message, Mapping) or not isinstance(message["role"], str) or not isinstance(message["content"], str):
            raise TypeError("role and content are texts")
    return list(prompt)


def _length(row: ScoredResponse) -> int:
    return len(row.prompt_ids) + len(row.response_ids)
