"""Token rows to the tensors of one forward pass, and per-target values back to one row a sequence.

A batch is packed (all rows after one another in one line, told apart by position ids) or padded on the right. Whoever
uses the model's outputs sees no difference: targets are addressed by flat index either way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from rlhf_core.batching.rows import TokenRow


@dataclass(frozen=True, slots=True)
class ModelBatch:
    """One forward pass: B' lines of S tokens that hold `n_rows` sequences with N targets, at most `width` = T in one.

    All index tensors are int64. Flat indices count positions of the [B', S] grid, row-major.
    """

    input_ids: Tensor  # [B', S]
    position_ids: Tensor  # [B', S], from 0 in every sequence
    attention_mask: Tensor | None  # [B', S] 1 on tokens, 0 on padding; None when packed
    target_index: Tensor  # [N] flat index of the hidden state that PREDICTS each target
    target_ids: Tensor  # [N] the tokens predicted
    target_row: Tensor  # [N] the sequence each target belongs to
    target_column: Tensor  # [N] its number among that sequence's targets
    last_index: Tensor  # [n_rows] flat index of each sequence's last token
    n_rows: int
    width: int

    def to(self, device: torch.device | str) -> ModelBatch:
        """The same batch with its tensors on `device`."""
        tensors: dict[str, Any] = {f.name: v.to(device) for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)}
        return replace(self, **tensors)


def collate(rows: Sequence[TokenRow], *, pad_id: int, packed: bool) -> ModelBatch:
    """Rows in one forward pass, in their order.

    Without rows it is one padding token and no sequence: a rank with nothing left runs the same forward pass as the
    others and gets zero-sized outputs that still hang on the graph, so collectives match.
    """
    starts = _starts([len(row) for row in rows], packed)
    input_ids, position_ids, attention_mask = _packed_grid(rows, pad_id) if packed or not rows else _padded_grid(rows, pad_id)
    targets = [
        (start + i - 1, row.ids[i], r, column)
        for r, (row, start) in enumerate(zip(rows, starts, strict=True))
        for column, i in enumerate(j for j, is_target in enumerate(row.is_target) if is_target)
    ]
    target_index, target_ids, target_row, target_column = torch.tensor(targets, dtype=torch.long).reshape(-1, 4).unbind(1)
    return ModelBatch(
        input_ids=input_ids,
        position_ids=position_ids,
        attention_mask=attention_mask,
        target_index=target_index,
        target_ids=target_ids,
        target_row=target_row,
        target_column=target_column,
        last_index=torch.tensor([start + len(row) - 1 for row, start in zip(rows, starts, strict=True)], dtype=torch.long),
        n_rows=len(rows),
        width=max((row.n_targets for row in rows), default=0),
    )


def scatter(batch: ModelBatch, values_N: Tensor) -> Tensor:
    """Values of the N targets as [n_rows, T], left-aligned, zero elsewhere; differentiable."""
    grid = values_N.new_zeros(batch.n_rows, batch.width)
    return grid.index_put((batch.target_row, batch.target_column), values_N)


def target_mask(batch: ModelBatch) -> Tensor:
    """Bool [n_rows, T]: True where `scatter` puts a value."""
    return scatter(batch, torch.ones_like(batch.target_ids, dtype=torch.bool))


def _starts(lengths: Sequence[int], packed: bool) -> list[int]:
    """Flat index of each row's first token."""
    steps = lengths if packed else [max(lengths, default=0)] * len(lengths)
    return [0, *accumulate(steps)][: len(lengths)]


def _packed_grid(rows: Sequence[TokenRow], pad_id: int) -> tuple[Tensor, Tensor, None]:
    ids = [i for row in rows for i in row.ids] or [pad_id]
    positions = [p for row in rows for p in range(len(row))] or [0]
    return torch.tensor([ids]), torch.tensor([positions]), None


def _padded_grid(rows: Sequence[TokenRow], pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    longest = max(len(row) for row in rows)
    input_ids = torch.tensor([[*row.ids, *[pad_id] * (longest - len(row))] for row in rows])
    lengths = torch.tensor([[len(row)] for row in rows])
    positions = torch.arange(longest).expand(len(rows), longest)
    return input_ids, positions.contiguous(), (positions < lengths).long()
