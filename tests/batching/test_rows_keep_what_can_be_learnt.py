"""Token rows: what they refuse, and that rows without targets or too long never pass unseen."""

from __future__ import annotations

import pytest

from data_processing.errors import DataError
from rlhf_core.batching.rows import TokenRow, apply_overlong


def rows_of_lengths(*lengths: int) -> tuple[list[TokenRow], list[str]]:
    rows = [TokenRow.from_prompt_response([1], [2] * (length - 1)) for length in lengths]
    return rows, [f"row-{i}" for i in range(len(rows))]


def test_the_response_is_the_target() -> None:
    row = TokenRow.from_prompt_response([5, 6], [7, 8, 9])
    assert row == TokenRow([5, 6, 7, 8, 9], [False, False, True, True, True])
    assert (len(row), row.n_targets) == (5, 3)


@pytest.mark.parametrize(("ids", "is_target"), [([], []), ([1, 2], [False]), ([1, 2], [True, True])])
def test_impossible_rows_are_refused(ids: list[int], is_target: list[bool]) -> None:
    with pytest.raises(ValueError, match="token"):
        TokenRow(ids, is_target)


def test_a_row_without_targets_is_an_error_that_names_it() -> None:
    rows = [TokenRow([1, 2], [False, True]), TokenRow([1, 2], [False, False])]
    with pytest.raises(DataError, match=r"1 row\(s\) \(bad\) without a single token to learn from"):
        apply_overlong(rows, ["good", "bad"], 10, "drop", 1.0)


def test_rows_that_fit_are_kept_in_order() -> None:
    rows, ids = rows_of_lengths(4, 5, 2)
    assert apply_overlong(rows, ids, 5, "error", 0.0) == [0, 1, 2]


def test_an_overlong_row_is_an_error_that_names_row_length_and_limit() -> None:
    rows, ids = rows_of_lengths(4, 6)
    with pytest.raises(DataError, match=r"row-1 \(6 tokens\).*max_length_tokens=5"):
        apply_overlong(rows, ids, 5, "error", 1.0)


def test_overlong_rows_are_dropped_whole_up_to_the_allowed_share() -> None:
    rows, ids = rows_of_lengths(4, 6, 5, 7)
    assert apply_overlong(rows, ids, 5, "drop", 0.5) == [0, 2]
    with pytest.raises(DataError, match=r"2 row\(s\).*of 4.*max_dropped_fraction=0.4"):
        apply_overlong(rows, ids, 5, "drop", 0.4)


def test_many_bad_rows_are_counted_and_the_first_ones_named() -> None:
    rows, ids = rows_of_lengths(*[9] * 8)
    with pytest.raises(DataError, match=r"8 row\(s\) \(row-0 .*row-4 \(9 tokens\), \.\.\.\)"):
        apply_overlong(rows, ids, 5, "error", 0.0)
