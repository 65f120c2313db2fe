"""Rows that follow one another with the same prompt: a packed line holds that prompt once, and costs what it holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby, takewhile

from rlhf_core.batching.balance import micro_batches
from rlhf_core.batching.rows import TokenRow
from rlhf_core.collector import collector_off


def shared_beginning(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def runs_of_a_prompt(rows: Sequence[TokenRow]) -> list[list[int]]:
    """Indices of `rows` in order, cut where the prompt changes. A row without a target has no prompt and stands alone."""
    return [[i for i, _ in run] for _, run in groupby(enumerate(rows), key=lambda numbered: _prompt(*numbered))]


def _prompt(number: int, row: TokenRow) -> list[int] | int:
    length = row.prompt_length
    return row.ids[:length] if length < len(row) else number


def line_tokens(rows: Sequence[TokenRow], *, shared: bool) -> int:
    """Tokens of the packed line of `rows`; with `shared` prompts each run of rows has its prompt once."""
    repeated = sum((len(run) - 1) * rows[run[0]].prompt_length for run in runs_of_a_prompt(rows)) if shared else 0
    return sum(len(row) for row in rows) - repeated


def plan_rows(rows: Sequence[TokenRow], max_tokens: int, world_size: int, *, packed: bool, shared: bool) -> list[list[list[int]]]:
    """As `balance.micro_batches` for rows, counted as they are computed: [rank][micro-batch][row].

    With `shared` prompts a run of rows stays together as far as it fits into `max_tokens`.
    """
    with collector_off():
        units = _units(rows, max_tokens) if packed and shared else [[i] for i in range(len(rows))]
        lengths = [line_tokens([rows[i] for i in unit], shared=shared) for unit in units]
        plan = micro_batches(lengths, max_tokens, world_size, packed)
        return [[[i for unit in batch for i in units[unit]] for batch in batches] for batches in plan]


def _units(rows: Sequence[TokenRow], max_tokens: int) -> list[list[int]]:
    """Runs of a prompt, cut where they would be longer than `max_tokens`."""
    units: list[list[int]] = []
    for run in runs_of_a_prompt(rows):
        prompt_length = rows[run[0]].prompt_length
        tokens = math.inf
        for i in run:
            own = len(rows[i]) - prompt_length
            if tokens + own > max_tokens:
                units.append([])
                tokens = prompt_length
            units[-1].append(i)
            tokens += own
    return units
