"""What spreads rewards over tokens is given and gives back. Each kind lives in a file of its own; nothing here spreads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_core.rewards.base import CreditedUnit, ScoredResponse
from rlhf_core.rewards.compose import Rewards


@dataclass(frozen=True)
class Round:
    """B responses of a round, what they are worth, and what may be asked about them.

    `ends[i]` is the token id that response i ended with, None where it was cut. `entropy` [B, T] (nats) is that of the distribution each
    token was drawn from under the policy before the update, for those that need it. `worth_of` scores other responses as these were
    scored, on the same scale; None where one is invalid.
    """

    responses: Sequence[ScoredResponse]
    rewards: Rewards
    ends: Sequence[int | None]
    eos_ids: Sequence[int]
    tokenizer: PreTrainedTokenizerBase
    entropy: Tensor | None
    worth_of: Callable[[Sequence[ScoredResponse]], list[float | None]]


@dataclass(frozen=True)
class Credited:
    """`total[i]` goes to the last token of response i, `tokens[i]` (a number a token, None for none) to its tokens on top.

    `units[i]` are what the report shows; `metrics` are told as `credit/<name>`.
    """

    total: Sequence[float | None]
    tokens: Sequence[Sequence[float] | None]
    units: Sequence[Sequence[CreditedUnit]] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)


class Credit(Protocol):
    """Where the rewards of a round go. It may say with `needs_entropy` that it reads the entropy of the tokens."""

    def __call__(self, given: Round) -> Credited:
        """The credit of all responses."""
        ...
