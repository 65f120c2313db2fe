"""What a run with credit below the response shows of its last round: who earned what in some responses."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf_core.credit.spans import spell
from rlhf_core.recipes.online.rollouts import rows_to_show
from rlhf_core.recipes.prompts import Prompt

# In the artifact; the report reads it.
CREDIT = "credit.json"


def write_credit(rollouts: Path, prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """Responses with units of the last round that is kept in a folder, as JSON: the prompt, the reward, the text in parts with their credit.

    Nothing where none has units.
    """
    asked = {prompt.id: [dict(message) for message in prompt.messages] for prompt in prompts}
    chosen = rows_to_show(rollouts, "units", "response_ids", "reward")
    told = [{"prompt": asked[row["prompt_id"]], "reward": row["reward"], "parts": list(_parts(row, tokenizer))} for row in chosen]
    if told:
        path.write_text(json.dumps(told), encoding="utf-8")


def _parts(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> Iterator[dict[str, Any]]:
    """The response's text from start to end: what no unit holds has no credit."""
    spelled = spell(row["response_ids"], tokenizer)
    if spelled is None:
        return
    read = 0
    for unit in row["units"]:
        start, end = spelled.spans[unit["start"]][0], spelled.spans[unit["end"] - 1][1]
        if spelled.text[read:start]:
            yield {"text": spelled.text[read:start], "credit": None}
        yield {"text": spelled.text[start:end], "credit": unit["credit"]}
        read = end
    if spelled.text[read:]:
        yield {"text": spelled.text[read:], "credit": None}
