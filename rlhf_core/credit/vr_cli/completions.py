"""A known completion behind its prompt, with a plan or without, and how likely a frozen model finds it. Source: vrcli.md, sections 3, 4."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch

from data_processing.schemas import canonical_json
from data_processing.sources.messages import json_messages, messages
from data_processing.sources.turn import BadRow
from data_processing.turns import ASKED, with_text_behind
from rlhf_core.batching.chat_template import Message
from rlhf_core.batching.rendering import read_rendering
from rlhf_core.batching.rows import TokenRow
from rlhf_core.batching.sharing import shared_beginning
from rlhf_core.batching.templates import Renderer
from rlhf_core.credit.vr_cli.record_id import record_id
from rlhf_core.device import device_for
from rlhf_core.models.load import load_lm, load_tokenizer
from rlhf_core.models.modules import PolicyModule
from rlhf_core.models.passes import Tell, passes
from rlhf_core.settings.vr_cli import PLAN_PLACE, ScoreSpan, VrCliBaselineConfig

# Where a row's answer is, if it has no label: a conversation's last turn, or the column of an answer.
_ANSWERS = ("last_answer", "response", "completion", "output")
# The argument by which templates are told not to begin with a thought.
_THINKING = "enable_thinking"


@dataclass(frozen=True, slots=True)
class Record:
    """What a completion continues (`asked`, messages), and the completion. Functions that may be called are no part of it."""

    asked: Sequence[Message]
    completion: str

    @property
    def id(self) -> str:
        """That of its content."""
        return record_id([*self.asked, {"role": "assistant", "content": self.completion}])

    @classmethod
    def of(cls, prompt: Sequence[Message], label: str | None, columns: Mapping[str, Any], gold: str | None) -> Record | None:
        """That of a row of the prompts table, whose instruction to the policy is no part of it; None where it has no completion.

        `gold` names the column of the completion; None takes the label, else the answer.
        """
        found = [label, *(columns.get(name) for name in _ANSWERS)] if gold is None else [columns.get(gold)]
        given = next((value for value in found if value not in (None, "")), None)
        if given is None:
            return None
        text = _text_of(given)
        return cls(columns.get(ASKED) or prompt, text) if text else None


def _text_of(given: Any) -> str:
    """An answer as text: that of its last turn where it is messages, in any form that sources have them; else as JSON. Empty for calls alone."""
    turns = json_messages(given) if isinstance(given, str) else given
    if isinstance(turns, dict) or (isinstance(turns, list) and turns and isinstance(turns[-1], dict)):
        try:
            return str(messages(turns, "completion", "assistant")[-1]["content"])
        except BadRow:
            return canonical_json(given).decode()
    return given if isinstance(given, str) else canonical_json(given).decode()


class CompletionRow(NamedTuple):
    """Tokens of prompt and completion; those from `start` on are scored. `of` tells the rows of one prompt."""

    ids: list[int]
    start: int
    of: str = ""


class Nll(NamedTuple):
    """Negative log-likelihood (nats) of a completion's tokens together, and how many they are."""

    total_nats: float
    n_tokens: int

    @property
    def mean(self) -> float:
        """Nats a token."""
        return self.total_nats / self.n_tokens


def scored_span(
    prompt_ids: Sequence[int], gold_ids: Sequence[int], end_id: int, behind_ids: Sequence[int], span: ScoreSpan
) -> CompletionRow:
    """Prompt and completion, up to the last token that is scored. By construction: nothing is searched for, so that two prompts score the same ids."""
    ending = {"content": [], "content+eot": [end_id], "all": [end_id, *behind_ids]}[span]
    return CompletionRow([*prompt_ids, *gold_ids, *ending], len(prompt_ids))


class FrozenGenerator:
    """A model that finds completions likely or not, and is never trained; `settings` say how it is asked and computes."""

    def __init__(self, folder: Path, settings: VrCliBaselineConfig, *, gpus: float) -> None:
        # Code that comes with its folder was trusted when that was taken in.
        tokenizer = load_tokenizer(folder, trust_remote_code=True)
        self._settings, self._device = settings, device_for(gpus)
        self._renderer = Renderer(tokenizer)
        if _THINKING in re.findall(r"\w+", self._renderer.template):
            rendering = read_rendering(folder)
            silent = rendering.model_copy(update={"chat_template_kwargs": {**rendering.chat_template_kwargs, _THINKING: False}})
            self._renderer = Renderer(tokenizer, rendering=silent)
        model = load_lm(folder, dtype=settings.precision, attention=settings.attention, trust_remote_code=True)
        self._module = PolicyModule(model.to(self._device)).eval()

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines for people on how its batches are laid out."""
        notes: tuple[str, ...] = self._module.layouts.notes
        return notes

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        return self._renderer.tokenizer

    def row(self, record: Record, plan: str = "") -> CompletionRow:
        """The completion behind its prompt, and behind the plan where that says something. Raises `DataError` as the renderer does."""
        prompt = self._renderer.prompt_ids(told(record.asked, plan, self._settings))
        end_id, behind = self._renderer.ending_ids
        gold = self._renderer.answer_ids(record.completion)
        return scored_span(prompt, gold, end_id, behind, self._settings.score_span)._replace(of=record.id)

    def cut(self, plan: str, max_tokens: int | None) -> tuple[str, int]:
        """The first tokens of a plan, and how many they are."""
        ids = self._renderer.answer_ids(plan)
        if max_tokens is None or len(ids) <= max_tokens:
            return plan, len(ids)
        return str(self.tokenizer.decode(ids[:max_tokens], skip_special_tokens=True)).strip(), max_tokens

    @torch.inference_mode()
    def nll(self, rows: Sequence[CompletionRow], tell: Tell = lambda done, total: None) -> list[Nll]:
        """How unlikely each row's completion is: log-softmax in fp32, sums in fp64.

        Equal rows are computed once; of rows next to each other what all begin with is.
        """
        places = {tuple(row.ids): row for row in rows}
        distinct = list(places.values())
        token_rows = _sharing_their_beginning(distinct)
        found: dict[tuple[int, ...], Nll] = {}
        for indices, batch in passes(token_rows, self._module.layouts, self._settings.micro_batch_tokens, self._device, tell):
            logprobs, _ = self._module(batch)
            for i, own in zip(indices, logprobs.double().tolist(), strict=True):
                scored = own[: token_rows[i].n_targets][-(len(distinct[i].ids) - distinct[i].start) :]
                found[tuple(distinct[i].ids)] = Nll(-math.fsum(scored), len(scored))
        return [found[tuple(row.ids)] for row in rows]


def told(asked: Sequence[Message], plan: str, settings: VrCliBaselineConfig) -> Sequence[Message]:
    """What the generator is asked: the record's own messages, the plan where it says something, and the instruction."""
    instruction = settings.instruction
    if plan and settings.plan_instruction is not None:
        instruction = settings.plan_instruction
    block = settings.plan_block.replace(PLAN_PLACE, plan) if plan else "\n\n" if instruction else ""
    return with_text_behind(asked, block + instruction)


def _sharing_their_beginning(rows: Sequence[CompletionRow]) -> list[TokenRow]:
    """As token rows. Rows of one prompt that are next to each other get what all of them begin with as their prompt.

    So it is computed once for them; log-probs are then computed of what follows it, and the completion's are the last.
    """
    found: list[TokenRow] = []
    for _, run in groupby(rows, key=lambda row: row.of):
        own = list(run)
        prompt = min(*(shared_beginning(own[0].ids, row.ids) for row in own), *(row.start for row in own))
        found += [TokenRow.from_prompt_response(row.ids[:prompt], row.ids[prompt:]) for row in own]
    return found
