"""Rows through a frozen model, a micro-batch after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import device

from rlhf_core.batching.collate import ModelBatch, collate
from rlhf_core.batching.rows import TokenRow
from rlhf_core.batching.sharing import plan_rows
from rlhf_core.models.layouts import Layouts

# Hears how many of all micro-batches are done.
Tell = Callable[[int, int], None]


def passes(
    rows: Sequence[TokenRow], layouts: Layouts, max_tokens: int, on: device, tell: Tell = lambda done, total: None
) -> Iterator[tuple[list[int], ModelBatch]]:
    """The places of some rows and their batch, until all had their turn; laid out as the model's `layouts` allow.

    Rows that follow one another with the same prompt have it computed once where that can be. `max_tokens` bounds one pass.
    """
    # Without segments of attention a packed line is told apart by positions, which gaps would break.
    packed = layouts.packed and (layouts.shared or all(row.positions is None for row in rows))
    shared = packed and layouts.shared
    [plan] = plan_rows(rows, max_tokens, 1, packed=packed, shared=shared)
    for done, places in enumerate(plan):
        tell(done, len(plan))
        part = [rows[place] for place in places]
        yield places, collate(part, pad_id=0, packed=packed, shared=shared).to(on)
