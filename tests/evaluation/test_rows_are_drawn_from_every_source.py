"""Which test rows are measured: a seeded share of every source, the same whatever the table's order; too long ones counted."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_processing.errors import ConfigError, DataError
from evaluation.row_selection import DrawnRow, count_rows, draw_rows, fitting, places

sizes = st.dictionaries(st.text(min_size=1, max_size=4), st.integers(1, 60), min_size=1, max_size=8)


def table(sizes: dict[str, int]) -> tuple[list[str], list[str]]:
    """Ids and sources of a table that is written source by source."""
    rows = [(f"{source}-{i}", source) for source, size in sizes.items() for i in range(size)]
    return [row for row, _ in rows], [source for _, source in rows]


def drawn_ids(ids: list[str], sources: list[str], most: int | None, seed: int = 1) -> set[str]:
    return {ids[i] for i in draw_rows(ids, sources, most, seed)}


def test_every_source_is_measured_not_only_the_first() -> None:
    ids, sources = table({"procedures": 64, "mine": 101})
    measured = Counter(sources[i] for i in draw_rows(ids, sources, 64, seed=17))
    assert measured == {"procedures": 25, "mine": 39}


@given(sizes, st.integers(1, 200), st.integers(0, 5))
def test_the_order_of_the_table_does_not_change_the_sample(sizes: dict[str, int], most: int, seed: int) -> None:
    ids, sources = table(sizes)
    shuffled = list(zip(ids, sources, strict=True))
    random.Random(seed).shuffle(shuffled)
    again = drawn_ids([row for row, _ in shuffled], [source for _, source in shuffled], most, seed)
    assert again == drawn_ids(ids, sources, most, seed)
    assert len(again) == min(most, len(ids))


@given(sizes, st.integers(1, 200))
def test_places_are_proportional_and_one_for_each_source_where_there_is_room(sizes: dict[str, int], most: int) -> None:
    given_places = places(sizes, most)
    total = sum(sizes.values())
    assert sum(given_places.values()) == min(most, total)
    assert all(given_places[source] <= size for source, size in sizes.items())
    if most < len(sizes):
        assert min(size for s, size in sizes.items() if given_places[s]) >= max(
            size for s, size in sizes.items() if not given_places[s]
        )
    else:
        assert min(given_places.values()) >= 1
        assert all(n <= 1 or n < sizes[source] * most / total + 2 for source, n in given_places.items())


@given(sizes, st.integers(1, 100))
def test_more_prompts_are_the_same_prompts_and_others(sizes: dict[str, int], most: int) -> None:
    ids, sources = table(sizes)
    assert drawn_ids(ids, sources, most) <= drawn_ids(ids, sources, most + 1)


def test_another_seed_draws_other_rows_and_no_limit_draws_all() -> None:
    ids, sources = table({"a": 200})
    assert drawn_ids(ids, sources, 50, seed=1) != drawn_ids(ids, sources, 50, seed=2)
    assert draw_rows(ids, sources, None, seed=1) == list(range(200))


def test_rows_that_are_added_change_the_sample_little() -> None:
    ids, sources = table({"a": 200, "b": 100})
    before = drawn_ids(ids, sources, 60)
    more_ids, more_sources = table({"a": 210, "b": 100})
    assert len(before - drawn_ids(more_ids, more_sources, 60)) <= 6


def model_with(folder: Path, positions: int | None) -> Path:
    (folder / "config.json").write_text("{}" if positions is None else f'{{"max_position_embeddings": {positions}}}')
    return folder


ROWS = [DrawnRow(f"row{i}", "mine", 90 + i) for i in range(20)]


def test_rows_too_long_for_the_model_are_left_out_and_counted(tmp_path: Path) -> None:
    kept = fitting("prompts", ROWS, model_with(tmp_path, 128), new_tokens=20, max_dropped_fraction=0.05)
    assert kept == list(range(19))
    counts = count_rows(ROWS, kept, ["mine"] * 30 + ["other"] * 2).to_json()
    assert (counts["measured"], counts["of"]) == (19, 32)
    assert counts["sources"] == {"mine": {"measured": 19, "of": 30}, "other": {"measured": 0, "of": 2}}
    assert counts["left_out"] == [{"id": "row19", "source": "mine", "tokens": 109}]


def test_more_rows_too_long_than_tolerated_stop_the_stage_by_name(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"2 of the 20 rows drawn.*107 tokens.*max_dropped_fraction=0.05.*'row18' \(108 tokens, source mine"
    ):
        fitting("prompts", ROWS, model_with(tmp_path, 127), new_tokens=20, max_dropped_fraction=0.05)


def test_answers_that_fit_behind_no_prompt_are_a_wrong_setting(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"evaluate.max_new_tokens=60 behind the longest test prompt of 109 tokens"):
        fitting("prompts", ROWS, model_with(tmp_path, 128), new_tokens=60, max_dropped_fraction=1.0)


def test_a_model_without_a_limit_takes_every_row(tmp_path: Path) -> None:
    kept = fitting("prompts", ROWS, model_with(tmp_path, None), new_tokens=10**6, max_dropped_fraction=0.0)
    assert kept == list(range(20))
