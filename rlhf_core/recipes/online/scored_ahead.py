"""Rewards that wait for others begin while other responses are still drawn: the sampler tells the reward worker of each that ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from rlhf_core.models.load import load_tokenizer
from rlhf_core.recipes.prompts import Prompt, scored_response
from rlhf_core.rollout.base import Generation


@dataclass(frozen=True)
class ScoredAhead:
    """Hears, in the sampler's process, of each response of round `step` (from 0) to `prompts`, and tells the actor `reward`."""

    reward: Any
    model: Path
    trust_remote_code: bool
    prompts: Sequence[Prompt]
    step: int

    def __call__(self, place: int, generation: Generation) -> None:
        """A response to the prompt at `place` has ended."""
        tokenizer = _tokenizer(self.model, self.trust_remote_code)
        self.reward.begin.remote([scored_response(self.prompts[place], generation, tokenizer, self.step)])


@lru_cache(maxsize=1)
def _tokenizer(model: Path, trust_remote_code: bool) -> Any:
    return load_tokenizer(model, trust_remote_code=trust_remote_code)
