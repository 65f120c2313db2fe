"""Splits depend on prompts alone; repeated and leaking rows are found, named, and dropped only when allowed."""

import unicodedata
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_processing.config import Split
from data_processing.keys import TableKeys, normalised, prompt_key, prompt_of
from data_processing.splits import clashing, split_of
from tests.data.placed_rows import (
    PlacedRow,
    filled,
    plainly_without_duplicates,
    plainly_without_leaks,
    without_duplicates,
    without_leaks,
)


def prompt_row(text: str, row_id: str, split: Split = "train", label: str | None = None) -> PlacedRow:
    row = {"id": row_id, "prompt": [{"role": "user", "content": text}], "label": label, "source": "s"}
    return PlacedRow("prompts", split, row)


def sft_row(text: str, row_id: str, split: Split = "train") -> PlacedRow:
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": f"answer {row_id}"}]
    return PlacedRow("sft", split, {"id": row_id, "messages": messages})


def split_of_text(text: str, validation: float, test: float) -> Split:
    return split_of(prompt_key([{"role": "user", "content": text}]), validation, test)


@given(st.text(), st.floats(0, 0.49), st.floats(0, 0.49))
def test_the_split_of_a_prompt_is_fixed_and_test_rows_stay_test_rows_whatever_the_validation_share(
    text: str, validation: float, test: float
) -> None:
    split = split_of_text(text, validation, test)
    assert split == split_of_text(f" {text.upper().lower()}\n" if text.isascii() else text, validation, test)
    assert (split == "test") == (split_of_text(text, 0.0, test) == "test")


def test_splits_have_their_shares_of_the_prompts() -> None:
    splits = [split_of_text(str(i), validation=0.1, test=0.2) for i in range(10_000)]
    assert splits.count("test") == pytest.approx(2000, abs=160)  # four standard deviations
    assert splits.count("validation") == pytest.approx(1000, abs=120)
    assert {split_of_text(str(i), 0.0, 0.0) for i in range(100)} == {"train"}


def test_known_prompts_keep_their_split_for_good() -> None:
    known = {"b": "train", "d": "train", "c": "test", "j": "test", "a": "validation", "e": "validation"}
    assert {text: split_of_text(text, 0.25, 0.25) for text in known} == known


@pytest.mark.parametrize(
    "repeat",
    [prompt_row("Why?", "2"), prompt_row("Why?", "1"), prompt_row("Why?", "1", split="test")],
    ids=["same content", "same id and content", "both, in another split"],
)
def test_duplicates_are_found_and_told(repeat: PlacedRow) -> None:
    rows = [prompt_row("Why?", "1"), repeat]
    kept, dropped = without_duplicates(rows)
    assert kept == rows[:1]
    assert len(dropped) == 1
    assert dropped[0].startswith(str(repeat))
    assert dropped[0].endswith(f"repeats {rows[0]}")


def test_rows_that_share_a_prompt_or_an_id_only_are_no_duplicates() -> None:
    prompts = [prompt_row("Why?", "1"), prompt_row("Why?", "3", label="x"), prompt_row("How?", "3")]
    rows = [sft_row("Why?", "1"), sft_row("Why?", "2"), *prompts]
    assert without_duplicates(rows) == (rows, [])


@pytest.mark.parametrize("text", ["Why?", "why?", " Why? \n"])
@pytest.mark.parametrize(("nearer", "further"), [("train", "test"), ("train", "validation"), ("validation", "test")])
def test_a_prompt_in_two_splits_is_a_leak_and_the_copy_nearer_to_training_goes(nearer: Split, further: Split, text: str) -> None:
    rows = [sft_row(text, "1", nearer), prompt_row("Why?", "2", further), sft_row("How?", "3", nearer)]
    kept, dropped = without_leaks(rows)
    assert kept == rows[1:]
    assert dropped == [f"{rows[0]} leaks {rows[1]}"]


def test_an_id_in_two_splits_is_no_leak_where_the_prompts_differ() -> None:
    rows = [prompt_row("a", "1", "train"), prompt_row("b", "1", "test"), sft_row("c", "1", "validation")]
    assert without_leaks(rows) == (rows, [])


def test_the_same_prompt_within_one_split_is_no_leak() -> None:
    rows = [sft_row("Why?", "1"), prompt_row("Why?", "2"), sft_row("Why?", "3")]
    assert without_leaks(rows) == (rows, [])


def test_earlier_turns_and_system_prompts_make_prompts_different() -> None:
    def key(*turns: tuple[str, str]) -> int:
        return prompt_key([{"role": role, "content": content} for role, content in turns])

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
def test_after_dropping_no_prompt_stands_in_two_splits(rows: list[PlacedRow]) -> None:
    kept, _ = without_leaks(rows)
    assert kept == plainly_without_leaks(rows)
    places: dict[Any, set[str]] = {}
    for placed in kept:
        places.setdefault(prompt_key(prompt_of(placed.row)), set()).add(placed.split)
    assert all(len(splits) == 1 for splits in places.values())
    assert [r for r in kept if r.split == "test"] == [r for r in rows if r.split == "test"]


@given(placed_rows)
def test_rows_are_repeats_by_their_hashes_just_where_they_are_by_all_that_they_hold(rows: list[PlacedRow]) -> None:
    kept, dropped = without_duplicates(rows)
    assert kept == plainly_without_duplicates(rows)
    assert len(dropped) == min(len(rows) - len(kept), 10)


ascii_texts = st.text(st.characters(max_codepoint=127)) | st.text(st.sampled_from("aB \t\n\v\f\r\x1c\x1d\x1e\x1f\x00"))


@given(ascii_texts, ascii_texts)
def test_prompts_are_the_same_just_where_their_words_are(one: str, other: str) -> None:
    assert normalised(one) == " ".join(one.casefold().split())
    prompts = [[{"role": "user", "content": text}] for text in (one, other)]
    assert (prompt_key(prompts[0]) == prompt_key(prompts[1])) == (one.casefold().split() == other.casefold().split())


texts = st.text() | st.text(st.sampled_from("aB ßé\u0301\u0345ΐÅ\u212bﬁ①\x85\xa0\u2003\u3000\u200d"))


@given(texts, st.sampled_from(["NFC", "NFD", "NFKC", "NFKD"]), st.sampled_from("\u200b\u200d\ufeff\u00ad\u2060\ufe0f"), st.data())
def test_prompts_are_the_same_in_every_normal_form_and_with_characters_that_show_nothing(
    text: str, form: Any, nothing: str, data: st.DataObject
) -> None:
    place = data.draw(st.integers(0, len(text)))
    assert normalised(unicodedata.normalize(form, text)) == normalised(text)
    assert normalised(text[:place] + nothing + text[place:]) == normalised(text)
    assert normalised(normalised(text)) == normalised(text)
    assert normalised(f"\xa0{text} \n") == normalised(text)


def test_accents_and_scripts_still_make_prompts_different() -> None:
    assert len({normalised(text) for text in ("resume", "résumé", "resumé", "рesume", "re sume", "再开", "再")}) == 7


by_prompt = st.lists(st.tuples(st.sampled_from(["sft", "prompts"]), st.integers(0, 30)), min_size=1, max_size=20)
shares = st.sampled_from([0.0, 0.05, 0.2, 0.4])


def placed(table: str, number: int, validation: float, test: float) -> PlacedRow:
    text = str(number)
    return (sft_row if table == "sft" else prompt_row)(text, text, split_of_text(text, validation, test))


@settings(deadline=None)
@given(by_prompt, shares, shares)
def test_splits_that_would_be_empty_get_one_prompt_and_none_is_left_empty_for_it(
    rows: list[tuple[str, int]], validation: float, test: float
) -> None:
    before = [placed(table, number, validation, test) for table, number in rows]
    after, splits = filled(before, [], validation, test)
    had, has = ({(r.table, r.split) for r in some} for some in (before, after))
    assert had <= has
    assert set(splits) <= has - had
    assert ("validation" if validation == 0 else "") not in {split for _, split in has - had}
    homes: dict[Any, set[str]] = {}
    for row in after:
        homes.setdefault(prompt_key(prompt_of(row.row)), set()).add(row.split)
    assert all(len(splits) == 1 for splits in homes.values())
    assert filled(before[::-1], [], validation, test)[1] == splits
    only_table = len({table for table, _ in rows}) == 1
    wanted = {"train"} | ({"validation"} if validation else set()) | ({"test"} if test else set())
    if only_table and len({number for _, number in rows}) >= len(wanted):
        assert {split for _, split in has} == wanted


def test_the_prompt_nearest_to_an_empty_split_is_put_there_with_all_its_rows_in_every_table() -> None:
    numbers = [number for number in range(100) if split_of_text(str(number), 0.1, 0.1) == "train"]
    rows = [placed(table, number, 0.0, 0.0) for number in numbers for table in ("sft", "sft", "prompts")]
    after, splits = filled(rows, [], 0.0, 0.1)
    lowest = min(numbers, key=lambda number: prompt_key([{"role": "user", "content": str(number)}]))
    assert splits == [("sft", "test")]
    assert {r.row["id"] for r in after if r.split == "test"} == {str(lowest)}
    assert sum(r.split == "test" for r in after) == 3


def test_prompts_with_a_given_split_stay_there() -> None:
    given_rows = [sft_row(str(number), str(number)) for number in range(5)]
    assert filled([], given_rows, 0.2, 0.2) == (given_rows, [])
    rows = [sft_row("a", "a"), sft_row("b", "b"), sft_row("0", "again")]
    after, splits = filled(rows, given_rows, 0.2, 0.2)
    assert after[:5] == given_rows
    assert after[-1].split == "train"
    assert splits == [("sft", "test"), ("sft", "validation")]


def test_rows_that_stay_clash_where_they_share_an_id() -> None:
    keys = TableKeys()
    for number, row_id in enumerate([7, 8, 7, 7, 9]):
        keys.add((row_id, number, number, None), "train", "row", number)
    stays = np.array([True, True, False, True, True])
    assert clashing(keys.ids, stays).tolist() == [True, False, False, True, False]
    assert not clashing(keys.ids, np.array([True, True, False, False, True])).any()
