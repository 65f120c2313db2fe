"""Token rows to the tensors of one forward pass, and per-target values back to one row a sequence.

A batch is packed (all rows after one another in one line, told apart by position ids) or padded on the right; a packed line
may hold a prompt once for several rows. Whoever uses the model's outputs sees no difference: targets are addressed by flat
index in any layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlhf_core.batching.rows import TokenRow
from rlhf_core.batching.sharing import runs_of_a_prompt


class Segment(NamedTuple):
    """Consecutive tokens of a packed line. They see themselves, and the whole of segment number `prompt` if there is one."""

    length: int
    prompt: int | None


@dataclass(frozen=True, slots=True)
class ModelBatch:
    """One forward pass: B' lines of S tokens that hold `n_rows` sequences with N targets, at most `width` = T in one.

    All index tensors are int64. Flat indices count positions of the [B', S] grid, row-major.
    """

    input_ids: Tensor  # [B', S]
    position_ids: Tensor  # [B', S], from 0 in every sequence, with gaps where tokens are hidden
    attention_mask: Tensor | None  # [B', S] 1 on tokens, 0 on padding; None when packed
    segments: tuple[Segment, ...]  # of the packed line, in order; none when padded
    target_index: Tensor  # [N] flat index of the hidden state that PREDICTS each target
    target_place: Tensor  # [N] flat index of the target itself
    target_ids: Tensor  # [N] the tokens predicted
    target_row: Tensor  # [N] the sequence each target belongs to
    target_column: Tensor  # [N] its number among that sequence's targets
    last_index: Tensor  # [n_rows] flat index of each sequence's last token
    n_rows: int
    width: int
    has_gaps: bool  # whether some row has tokens hidden, so that its positions have gaps

    def to(self, device: torch.device | str) -> ModelBatch:
        """The same batch with its tensors on `device`."""
        tensors: dict[str, Any] = {f.name: v.to(device) for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)}
        return replace(self, **tensors)


class _Layout(NamedTuple):
    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor | None
    segments: tuple[Segment, ...]
    places: list[Tensor]  # flat indices of each row's tokens


def collate(rows: Sequence[TokenRow], *, pad_id: int, packed: bool, shared: bool = False) -> ModelBatch:
    """Rows in one forward pass, in their order.

    With `shared` a packed line has a prompt once for all rows that follow one another with it; for modules whose
    `layouts` say so. Without rows it is one padding token and no sequence: a rank with nothing left runs the same
    forward pass as the others and gets zero-sized outputs that still hang on the graph, so collectives match.
    """
    layout = _line(rows, pad_id, shared) if packed or not rows else _grid(rows, pad_id)
    learnt = [torch.tensor(row.is_target).nonzero()[:, 0] for row in rows]
    counts = torch.tensor([len(columns) for columns in learnt], dtype=torch.long)
    return ModelBatch(
        input_ids=layout.input_ids,
        position_ids=layout.position_ids,
        attention_mask=layout.attention_mask,
        segments=layout.segments,
        target_index=_joined([places[columns - 1] for places, columns in zip(layout.places, learnt, strict=True)]),
        target_place=_joined([places[columns] for places, columns in zip(layout.places, learnt, strict=True)]),
        target_ids=_joined([torch.tensor(row.ids)[columns] for row, columns in zip(rows, learnt, strict=True)]),
        target_row=torch.arange(len(rows)).repeat_interleave(counts),
        target_column=_joined([torch.arange(len(columns)) for columns in learnt]),
        last_index=torch.tensor([int(places[-1]) for places in layout.places], dtype=torch.long),
        n_rows=len(rows),
        width=max((len(columns) for columns in learnt), default=0),
        has_gaps=any(row.positions is not None for row in rows),
    )


def scatter(batch: ModelBatch, values_N: Tensor) -> Tensor:
    """Values of the N targets as [n_rows, T], left-aligned, zero elsewhere; differentiable."""
    grid = values_N.new_zeros(batch.n_rows, batch.width)
    return grid.index_put((batch.target_row, batch.target_column), values_N)


def target_mask(batch: ModelBatch) -> Tensor:
    """Bool [n_rows, T]: True where `scatter` puts a value."""
    return scatter(batch, torch.ones_like(batch.target_ids, dtype=torch.bool))


def _line(rows: Sequence[TokenRow], pad_id: int, shared: bool) -> _Layout:
    ids: list[int] = []
    positions: list[int] = []
    segments: list[Segment] = []
    places: list[Tensor] = []

    def append(row: TokenRow, start: int, stop: int, prompt: int | None) -> Tensor:
        ids.extend(row.ids[start:stop])
        positions.extend(range(start, stop) if row.positions is None else row.positions[start:stop])
        segments.append(Segment(stop - start, prompt))
        return torch.arange(len(ids) - (stop - start), len(ids))

    for run in runs_of_a_prompt(rows) if shared else [[i] for i in range(len(rows))]:
        first = rows[run[0]]
        if len(run) == 1:
            places.append(append(first, 0, len(first), None))
            continue
        length, number = first.prompt_length, len(segments)
        prompt = append(first, 0, length, None)
        places += [torch.cat([prompt, append(rows[i], length, len(rows[i]), number)]) for i in run]
    return _Layout(torch.tensor([ids or [pad_id]]), torch.tensor([positions or [0]]), None, tuple(segments), places)


def _grid(rows: Sequence[TokenRow], pad_id: int) -> _Layout:
    longest = max(len(row) for row in rows)
    input_ids = torch.tensor([[*row.ids, *[pad_id] * (longest - len(row))] for row in rows])
    lengths = torch.tensor([[len(row)] for row in rows])
    columns = torch.arange(longest).expand(len(rows), longest)
    positions = columns.clone()
    for own, row in zip(positions, rows, strict=True):
        if row.positions is not None:
            own[: len(row)] = torch.tensor(row.positions)
    places = [torch.arange(i * longest, i * longest + len(row)) for i, row in enumerate(rows)]
    return _Layout(input_ids, positions, (columns < lengths).long(), (), places)


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.long)
