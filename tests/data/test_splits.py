"""Splits depend on ids alone; repeated and leaking rows are found, named, and dropped only when allowed."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_processing.config import Split
from data_processing.errors import DataError
from data_processing.keys import id_key, normalised, prompt_key
from data_processing.splits import split_of
from tests.data.placed_rows import (
    PlacedRow,
    plainly_without_duplicates,
    plainly_without_leaks,
    without_duplicates,
    without_leaks,
    words,
)


def prompt_row(text: str, row_id: str, split: Split = "train", label: str | None = None) -> PlacedRow:
    row = {"id": row_id, "prompt": [{"role": "user", "content": text}], "label": label, "source": "s"}
    return PlacedRow("prompts", split, row)


def sft_row(text: str, row_id: str, split: Split = "train") -> PlacedRow:
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": f"answer {row_id}"}]
    return PlacedRow("sft", split, {"id": row_id, "messages": messages})


@given(st.text(), st.floats(0, 0.49), st.floats(0, 0.49))
def test_the_split_of_an_id_is_fixed_and_test_rows_stay_test_rows_whatever_the_validation_share(
    row_id: str, validation: float, test: float
) -> None:
    split = split_of(id_key(row_id), validation, test)
    assert split == split_of(id_key(row_id), validation, test)
    assert (split == "test") == (split_of(id_key(row_id), 0.0, test) == "test")


def test_splits_have_their_shares() -> None:
    splits = [split_of(id_key(str(i)), validation_fraction=0.1, test_fraction=0.2) for i in range(10_000)]
    assert splits.count("test") == pytest.approx(2000, abs=160)  # four standard deviations
    assert splits.count("validation") == pytest.approx(1000, abs=120)
    assert {split_of(id_key(str(i)), 0.0, 0.0) for i in range(100)} == {"train"}


def test_known_ids_keep_their_split_for_good() -> None:
    known = {"a": "train", "g": "train", "b": "test", "j": "test", "m": "validation", "o": "validation"}
    assert {row_id: split_of(id_key(row_id), 0.25, 0.25) for row_id in known} == known


@pytest.mark.parametrize(
    "repeat",
    [prompt_row("other", "1"), prompt_row("Why?", "2"), prompt_row("Why?", "1", split="test")],
    ids=["same id", "same content", "both, in another split"],
)
def test_duplicates_stop_the_run_or_are_dropped_and_told(repeat: PlacedRow) -> None:
    rows = [prompt_row("Why?", "1"), repeat]
    with pytest.raises(DataError, match=r"1 rows repeat(.|\n)*allow_duplicates(.|\n)*file row 1"):
        without_duplicates(rows, allowed=False)
    kept, dropped = without_duplicates(rows, allowed=True)
    assert kept == rows[:1]
    assert len(dropped) == 1


def test_rows_that_share_a_prompt_only_or_an_id_across_tables_are_no_duplicates() -> None:
    rows = [sft_row("Why?", "1"), sft_row("Why?", "2"), prompt_row("Why?", "1"), prompt_row("Why?", "3", label="x")]
    assert without_duplicates(rows, allowed=False) == (rows, [])


@pytest.mark.parametrize("text", ["Why?", "why?", " Why? \n"])
@pytest.mark.parametrize(("nearer", "further"), [("train", "test"), ("train", "validation"), ("validation", "test")])
def test_a_prompt_in_two_splits_is_a_leak_and_the_copy_nearer_to_training_goes(nearer: Split, further: Split, text: str) -> None:
    rows = [sft_row(text, "1", nearer), prompt_row("Why?", "2", further), sft_row("How?", "3", nearer)]
    with pytest.raises(DataError, match=rf"1 rows (.|\n)*allow_leaks(.|\n)*sft/{nearer} id 1 (.|\n)*prompts/{further} id 2"):
        without_leaks(rows, allowed=False)
    kept, dropped = without_leaks(rows, allowed=True)
    assert kept == rows[1:]
    assert len(dropped) == 1


def test_an_id_in_two_splits_is_a_leak() -> None:
    kept, dropped = without_leaks([prompt_row("a", "1", "train"), prompt_row("b", "1", "test")], allowed=True)
    assert [r.split for r in kept] == ["test"]
    assert len(dropped) == 1


def test_the_same_prompt_within_one_split_is_no_leak() -> None:
    rows = [sft_row("Why?", "1"), prompt_row("Why?", "2"), sft_row("Why?", "3")]
    assert without_leaks(rows, allowed=False) == (rows, [])


def test_earlier_turns_and_system_prompts_make_prompts_different() -> None:
    def key(*turns: tuple[str, str]) -> int:
        return prompt_key({"prompt": [{"role": role, "content": content} for role, content in turns]})

    assert key(("user", "a")) != key(("system", "s"), ("user", "a"))
    assert key(("user", "a")) != key(("user", "x"), ("assistant", "y"), ("user", "a"))
    assert key(("user", "a b")) != key(("user", "ab"))


placed_rows = st.lists(
    st.builds(
        lambda table, text, number, split: (prompt_row if table == "prompts" else sft_row)(text, str(number), split),
        st.sampled_from(["sft", "prompts"]),
        st.sampled_from("abc"),
        st.integers(0, 12),
        st.sampled_from(["train", "validation", "test"]),
    ),
    max_size=12,
)


@settings(deadline=None)
@given(placed_rows)
def test_after_dropping_no_prompt_and_no_id_stands_in_two_splits(rows: list[PlacedRow]) -> None:
    kept, _ = without_leaks(rows, allowed=True)
    assert kept == plainly_without_leaks(rows)
    places: dict[Any, set[str]] = {}
    for placed in kept:
        places.setdefault(("id", placed.row["id"]), set()).add(placed.split)
        places.setdefault(("prompt", prompt_key(placed.row)), set()).add(placed.split)
    assert all(len(splits) == 1 for splits in places.values())
    assert [r for r in kept if r.split == "test"] == [r for r in rows if r.split == "test"]


@given(placed_rows)
def test_rows_are_repeats_by_their_hashes_just_where_they_are_by_all_that_they_hold(rows: list[PlacedRow]) -> None:
    kept, dropped = without_duplicates(rows, allowed=True)
    assert kept == plainly_without_duplicates(rows)
    assert len(dropped) == min(len(rows) - len(kept), 10)


texts = st.text() | st.text(st.sampled_from("aB ß\t\n\v\f\r\x1c\x1d\x1e\x1f\x85\xa0\u2003\u3000\x00"))


@given(texts, texts)
def test_prompts_are_the_same_just_where_their_words_are(one: str, other: str) -> None:
    assert normalised(one) == " ".join(one.casefold().split())
    rows = [{"prompt": [{"role": "user", "content": text}]} for text in (one, other)]
    assert (prompt_key(rows[0]) == prompt_key(rows[1])) == (words(rows[0]) == words(rows[1]))
