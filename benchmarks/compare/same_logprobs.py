"""Whether both arms compute the same log-probs where their samples differ: the peer's samples, scored by our own code."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from rlhf_core.batching.collate import collate
from rlhf_core.batching.rows import TokenRow
from rlhf_core.models.load import load_lm
from rlhf_core.models.modules import PolicyModule


def logprob_gap(model: Path, arm_folder: Path, prompts: Sequence[Sequence[int]]) -> float | None:
    """Largest difference (nats) on the samples that an arm kept from its first step; None where it kept none.

    Raises `RuntimeError` where they are no answers to `prompts` (token ids), each to as many as to any other.
    """
    path = arm_folder / "samples.json"
    if not path.exists():
        return None
    kept = json.loads(path.read_text())
    rows = [
        TokenRow.from_prompt_response(ids[:-n], ids[-n:]) for ids, n in zip(kept["ids"], kept["response_tokens"], strict=True)
    ]
    samples_a_prompt = len(rows) // len(prompts)
    asked = Counter(tuple(prompt) for prompt in prompts for _ in range(samples_a_prompt))
    if Counter(tuple(row.ids[: row.prompt_length]) for row in rows) != asked:
        raise RuntimeError(f"{path}: the samples of the first step are not answers to its prompts")
    module = PolicyModule(load_lm(model, dtype="fp32", attention="sdpa"))
    with torch.no_grad():
        logprobs_BT, _ = module(collate(rows, pad_id=0, packed=True))
    return max(
        float((torch.tensor(theirs) - ours[: len(theirs)]).abs().max())
        for theirs, ours in zip(kept["logprobs"], logprobs_BT, strict=True)
    )
