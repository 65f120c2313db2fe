"""The prompts that responses are sampled for: read, rendered, and their order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from data_processing.errors import DataError
from data_processing.schemas import read_table
from data_processing.turns import extra_of, messages_of, tools_of
from rlhf_core.batching.chat_template import Message
from rlhf_core.batching.refused import named, render_rows
from rlhf_core.batching.templates import Renderer
from rlhf_core.events import EventLog
from rlhf_core.rewards.base import ScoredResponse
from rlhf_core.rollout.base import Generation, Trajectory
from rlhf_core.settings.own_answers import SampleConfig
from rlhf_core.settings.rollout import RolloutSettings
from rlhf_core.settings.training import TrainingConfig


@dataclass(frozen=True, slots=True)
class Prompt:
    """One row of the prompts table with the token ids that the sampler is given; `columns` are further ones of its `source`.

    `tools` are those that it may call, as the table has them.
    """

    id: str
    messages: Sequence[Message]
    label: str | None
    ids: list[int]
    columns: Mapping[str, Any] = field(default_factory=dict)
    tools: str | None = None
    source: str = ""

    @property
    def length_tokens(self) -> int:
        """Its own tokens; nobody knows those of its answers."""
        return len(self.ids)

    @property
    def pass_rate(self) -> float | None:
        """The share of tries that got it right, where it has a column for that."""
        rate = self.columns.get("pass_rate")
        return float(rate) if isinstance(rate, (int, float)) else None


@dataclass(frozen=True, slots=True)
class Limits:
    """Which prompts can be sampled from: those that leave room for a response of `max_new_tokens` within `max_length_tokens`.

    Longer ones are an error or dropped, as `overlong` says, up to a share `max_dropped_fraction` of all.
    """

    max_length_tokens: int
    max_new_tokens: int
    overlong: Literal["error", "drop"]
    max_dropped_fraction: float

    @classmethod
    def of(cls, config: TrainingConfig | SampleConfig, rollout: RolloutSettings) -> Limits:
        """Those of a stage's settings."""
        return cls(config.max_length_tokens, rollout.max_new_tokens, config.overlong, config.max_dropped_fraction)


def read_prompts(
    data: Path,
    limits: Limits,
    events: EventLog,
    renderer: Renderer,
    split: str = "train",
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> list[Prompt]:
    """The prompts of a split of a prepared data folder that leave room for a whole response.

    `tools` are those that may be called where a row has none of its own.

    Raises `DataError` without prompts, for overlong ones as `limits` say, and as `render_rows` does.
    """
    path = data / "prompts" / f"{split}.parquet"
    if not path.is_file():
        raise DataError(
            f"{data} has no prompts/{split}.parquet: responses are sampled for the 'prompts' table; "
            "set data.procedures.prompt_rows or sources in data.prompts, and run prepare_data again"
        )
    table = read_table("prompts", path).to_pylist()

    def render(row: Mapping[str, Any]) -> Prompt:
        messages = messages_of(row, "prompt")
        own = tools_of(row) or tools
        ids = renderer.prompt_ids(messages, own)
        return Prompt(row["id"], messages, row["label"], ids, extra_of(row), json.dumps(own) if own else None, row["source"])

    prompts, refused = render_rows("prompts", table, render, limits.max_dropped_fraction)
    if refused:
        events.warn(f"{len(refused)} prompts were left out: {named(refused)}")
    room = limits.max_length_tokens - limits.max_new_tokens
    overlong = [prompt.id for prompt in prompts if len(prompt.ids) > room]
    if overlong and (limits.overlong == "error" or len(overlong) > limits.max_dropped_fraction * len(prompts)):
        raise DataError(
            f"{len(overlong)} of {len(prompts)} prompts ({', '.join(overlong[:5])}, ...) have more than {room} tokens, which is "
            f"max_length_tokens={limits.max_length_tokens} less rollout.max_new_tokens={limits.max_new_tokens}: "
            "raise max_length_tokens, lower max_new_tokens, or set overlong to 'drop' and raise max_dropped_fraction"
        )
    kept = [prompt for prompt in prompts if len(prompt.ids) <= room]
    if not kept:
        raise DataError(f"{path} has no prompt to sample from")
    return kept


def digest(prompts: Sequence[Prompt]) -> str:
    """sha256 of ids, tokens, labels, sources and further columns: changes with the table, the template and the tokenizer."""
    return hashlib.sha256(json.dumps([(p.id, p.ids, p.label, p.source, dict(p.columns)) for p in prompts]).encode()).hexdigest()


def scored_response(prompt: Prompt, generation: Generation, tokenizer: Any, step: int = 0) -> ScoredResponse:
    """A generation as rewards see it."""
    ids, reason, trajectory = generation.response_ids, generation.finish_reason, generation.trajectory
    said = ids if trajectory is None else _last_turn(generation, trajectory)
    text = tokenizer.decode(said, skip_special_tokens=True)
    return ScoredResponse(
        prompt.id, prompt.messages, prompt.label, prompt.ids, ids, text, prompt.columns, step, reason, trajectory
    )


def _last_turn(generation: Generation, trajectory: Trajectory) -> list[int]:
    """What the model said last: the learnt tokens at the end."""
    learnt = generation.is_learnt
    start = len(learnt)
    while start and learnt[start - 1]:
        start -= 1
    return generation.response_ids[start:] if trajectory.turn_ends else []
