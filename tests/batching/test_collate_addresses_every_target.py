"""Packed or padded, every target is found again: its row, its column, and the position that predicts it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_core.batching.collate import collate, scatter, target_mask
from rlhf_core.batching.rows import TokenRow

PAD = 0


@st.composite
def token_rows(draw: st.DrawFn) -> TokenRow:
    ids = draw(st.lists(st.integers(0, 50), min_size=1, max_size=12))  # padding's id may be a real token
    is_target = [False, *(draw(st.booleans()) for _ in ids[1:])]
    return TokenRow(ids, is_target)


any_rows = st.lists(token_rows(), min_size=1, max_size=6)


@given(rows=any_rows, packed=st.booleans())
def test_scatter_brings_the_targets_back_to_their_rows(rows: list[TokenRow], packed: bool) -> None:
    batch = collate(rows, pad_id=PAD, packed=packed)
    ids, mask = scatter(batch, batch.target_ids), target_mask(batch)
    assert ids.shape == mask.shape == (len(rows), max(row.n_targets for row in rows))
    for r, row in enumerate(rows):
        assert ids[r][mask[r]].tolist() == [token for token, learnt in zip(row.ids, row.is_target, strict=True) if learnt]
        assert mask[r].tolist() == [column < row.n_targets for column in range(batch.width)]
    assert ids[~mask].eq(0).all()


@given(rows=any_rows, packed=st.booleans())
def test_each_target_is_predicted_from_the_token_before_it(rows: list[TokenRow], packed: bool) -> None:
    batch = collate(rows, pad_id=PAD, packed=packed)
    flat_ids, flat_positions = batch.input_ids.flatten(), batch.position_ids.flatten()
    places = [(row, i) for row in rows for i, learnt in enumerate(row.is_target) if learnt]
    assert flat_ids[batch.target_index].tolist() == [row.ids[i - 1] for row, i in places]
    assert flat_positions[batch.target_index].tolist() == [i - 1 for _, i in places]
    assert batch.target_ids.tolist() == [row.ids[i] for row, i in places]
    assert torch.equal(flat_ids[batch.target_place], batch.target_ids)
    assert flat_positions[batch.target_place].tolist() == [i for _, i in places]


@given(rows=any_rows, packed=st.booleans())
def test_the_last_token_of_every_row_is_found(rows: list[TokenRow], packed: bool) -> None:
    batch = collate(rows, pad_id=PAD, packed=packed)
    assert batch.input_ids.flatten()[batch.last_index].tolist() == [row.ids[-1] for row in rows]
    assert batch.position_ids.flatten()[batch.last_index].tolist() == [len(row) - 1 for row in rows]


@given(rows=any_rows)
def test_packed_rows_stand_in_one_line_with_positions_from_zero_and_no_mask(rows: list[TokenRow]) -> None:
    batch = collate(rows, pad_id=PAD, packed=True)
    assert batch.attention_mask is None
    assert batch.input_ids.tolist() == [[token for row in rows for token in row.ids]]
    assert batch.position_ids.tolist() == [[i for row in rows for i in range(len(row))]]


@given(rows=any_rows)
def test_padding_is_on_the_right_and_masked_by_length(rows: list[TokenRow]) -> None:
    batch = collate(rows, pad_id=PAD, packed=False)
    longest = max(len(row) for row in rows)
    assert batch.attention_mask is not None
    for r, row in enumerate(rows):
        assert batch.input_ids[r].tolist() == row.ids + [PAD] * (longest - len(row))
        assert batch.attention_mask[r].tolist() == [1] * len(row) + [0] * (longest - len(row))
    assert int(batch.position_ids.max()) == longest - 1


def test_scatter_carries_gradients_to_the_values() -> None:
    rows = [TokenRow.from_prompt_response([1], [2, 3]), TokenRow.from_prompt_response([4], [5])]
    values = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    (scatter(collate(rows, pad_id=PAD, packed=True), values) * torch.tensor([[1.0, 10.0], [100.0, 1000.0]])).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [1.0, 10.0, 100.0]


@pytest.mark.parametrize("packed", [True, False])
def test_without_rows_a_pass_still_runs_and_its_empty_output_hangs_on_the_graph(packed: bool) -> None:
    batch = collate([], pad_id=PAD, packed=packed)
    assert batch.input_ids.shape == (1, 1)
    weight = torch.ones(3, requires_grad=True)
    outputs = (weight * batch.input_ids.flatten())[:1][batch.target_index]
    loss = scatter(batch, outputs).sum()
    loss.backward()
    assert loss.item() == 0.0
    assert weight.grad is not None
    assert weight.grad.eq(0).all()
    assert target_mask(batch).shape == (0, 0)


def test_the_batch_moves_with_all_its_tensors() -> None:
    batch = collate([TokenRow.from_prompt_response([1], [2])], pad_id=PAD, packed=True).to("meta")
    assert {t.device.type for t in (batch.input_ids, batch.position_ids, batch.target_index, batch.last_index)} == {"meta"}
    assert (batch.n_rows, batch.width, batch.attention_mask) == (1, 1, None)
