"""One tokenised row: ids, and which of them are predicted and enter the loss. Masks go by position, never by token id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from data_processing.errors import DataError

MAX_NAMED_ROWS = 5


@dataclass(frozen=True, slots=True)
class TokenRow:
    """`ids` of a prompt and what follows; `is_target[i]` says that token i is predicted and enters the loss.

    Both have the same length, and so have `weights`, where targets do not all count the same: what each counts in the loss, above 0.
    Nothing predicts the first token, so `is_target[0]` is always False. `positions` say where the tokens stand, where some between them
    are hidden.
    """

    ids: list[int]
    is_target: list[bool]
    weights: list[float] | None = None
    positions: list[int] | None = None

    def __post_init__(self) -> None:
        if not self.ids or len(self.ids) != len(self.is_target):
            raise ValueError(
                f"a row has one is_target a token and at least one token; got {len(self.ids)} and {len(self.is_target)}"
            )
        if self.is_target[0]:
            raise ValueError("the first token of a row cannot be a target: nothing precedes it")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def n_targets(self) -> int:
        """How many tokens enter the loss."""
        return sum(self.is_target)

    @property
    def target_weights(self) -> list[float]:
        """What each token that enters the loss counts in it."""
        if self.weights is None:
            return [1.0] * self.n_targets
        return [weight for weight, is_target in zip(self.weights, self.is_target, strict=True) if is_target]

    @property
    def prompt_length(self) -> int:
        """Tokens before the first that enters the loss; all of them where none does."""
        return self.is_target.index(True) if True in self.is_target else len(self)

    def hiding(self, start: int, end: int) -> TokenRow:
        """The row as a model sees it that does not attend to tokens [start, end): without them, the others where they stood.

        For models whose tokens know of each other by attention and positions alone.
        """
        stays = [*range(start), *range(end, len(self))]
        return TokenRow([self.ids[i] for i in stays], [self.is_target[i] for i in stays], None, stays)

    @classmethod
    def read_at(cls, ids: Sequence[int], places: Sequence[int]) -> TokenRow:
        """A row whose targets are the tokens at `places`, which is where values are read."""
        is_target = [False] * len(ids)
        for place in places:
            is_target[place] = True
        return cls(list(ids), is_target)

    @classmethod
    def from_prompt_response(cls, prompt_ids: Sequence[int], response_ids: Sequence[int]) -> TokenRow:
        """A row whose targets are exactly the response; the prompt must not be empty."""
        return cls([*prompt_ids, *response_ids], [False] * len(prompt_ids) + [True] * len(response_ids))


def apply_overlong(
    rows: Sequence[TokenRow],
    ids: Sequence[str],
    max_length: int,
    policy: Literal["error", "drop"],
    max_dropped_fraction: float,
) -> list[int]:
    """Indices of the rows to train on: none without a target, none longer than `max_length` tokens. Nothing is cut short.

    `ids` name the rows in errors. For pairs, pass the longer row of each, so that a pair stays or goes as one.
    Raises `DataError` naming rows without a target; rows too long under policy "error"; and, under "drop", when more than
    `max_dropped_fraction` of the rows would go. How many went is `len(rows)` less the number of indices.
    """
    empty = [name for row, name in zip(rows, ids, strict=True) if row.n_targets == 0]
    if empty:
        raise DataError(f"{_named(empty)} without a single token to learn from: a row needs an assistant turn that is not empty")
    overlong = [f"{name} ({len(row)} tokens)" for row, name in zip(rows, ids, strict=True) if len(row) > max_length]
    if overlong and policy == "error":
        raise DataError(
            f"{_named(overlong)} longer than max_length_tokens={max_length}: raise max_length_tokens, shorten the rows, "
            "or set overlong to 'drop'"
        )
    if len(overlong) > max_dropped_fraction * len(rows):
        raise DataError(
            f"{_named(overlong)} of {len(rows)} longer than max_length_tokens={max_length}, more than "
            f"max_dropped_fraction={max_dropped_fraction} allows: raise max_length_tokens or max_dropped_fraction"
        )
    return [i for i, row in enumerate(rows) if len(row) <= max_length]


def _named(names: Sequence[str]) -> str:
    shown = ", ".join(names[:MAX_NAMED_ROWS]) + (", ..." if len(names) > MAX_NAMED_ROWS else "")
    return f"{len(names)} row(s) ({shown})"
