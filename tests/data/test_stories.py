"""Stories as rows: novels are cut where their headings are, rows of chapters become prompts, and what is left out is counted."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from data_processing.config import DataConfig, SourceKind, StoryOptions, TableSource
from data_processing.errors import ConfigError, DataError
from data_processing.prepare import prepare
from data_processing.schemas import read_table
from data_processing.sources.stories import chapters, pieces, words
from data_processing.turns import ASKED, extra_of, messages_of
from tests.data.source_reading import Read, read_source

NOVEL = "\n\n".join(
    ["Of no chapter.", *(f"CHAPTER {n}\n\nIn chapter {n} it rained. " + "And then, again, it rained. " * 60 for n in range(1, 7))]
)


def novel(folder: Path, text: str = NOVEL, name: str = "rain.txt") -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


def read(path: Path, max_bad_fraction: float = 0.01, **settings: Any) -> Read:
    source = TableSource(path=str(path), kind=SourceKind.stories, **settings)
    return read_source("prompts", source, "data.prompts[0]", max_bad_fraction)


def completion(row: dict[str, Any]) -> str:
    content: str = extra_of(row)["response"][-1]["content"]
    return content


@pytest.mark.parametrize("name", ["rain.txt", "rain.txt.gz"])
def test_a_chapter_is_the_completion_of_the_one_before(tmp_path: Path, name: str) -> None:
    found = read(novel(tmp_path, name=name))
    # The second is none because it has number 1, the last two because they are the last.
    assert [row["id"] for row in found.rows] == ["rain:2", "rain:3"]
    first = found.rows[0]
    assert completion(first).startswith("In chapter 3 it rained.")
    [asked] = messages_of(first, "prompt")
    assert "In chapter 2 it rained." in asked["content"] and "CHAPTER 2" in asked["content"]
    assert asked["content"].endswith("### Heading of the next chapter ###\nCHAPTER 3")
    reasons = ("fewer than 1 before it", "before chapter 2", "of the last 2 of a text")
    assert found.notes == [
        f"data.prompts[0]: {n} chapters were left out: {why}" for n, why in zip((1, 1, 2), reasons, strict=True)
    ]
    assert first["source"] == name


def test_more_of_the_story_is_shown_where_that_is_asked(tmp_path: Path) -> None:
    [row] = read(novel(tmp_path), options={"previous": 3}).rows
    assert all(f"In chapter {n} it rained." in row["prompt"][0]["content"] for n in (1, 2, 3))


def test_a_novel_is_cut_into_pieces_of_a_length(tmp_path: Path) -> None:
    found = read(novel(tmp_path), options={"pieces_of_words": 50, "first_chapter": 1})
    counts = [len(completion(row).split()) for row in found.rows]
    assert min(counts) >= 50 and max(counts) < 60
    assert len(counts) > 20


@given(st.lists(st.sampled_from(["Rain fell.", "Who? I.", '"No!"', "It went on and on"]), max_size=30), st.integers(1, 12))
def test_pieces_lose_nothing_but_the_end(sentences: list[str], least: int) -> None:
    text = " ".join(sentences)
    found = pieces(text, least)
    assert text.startswith(" ".join(found))
    assert all(len(piece.split()) >= least for piece in found)
    assert len(text.split()) - sum(len(piece.split()) for piece in found) < least + 8


def test_headings_without_text_are_no_chapters() -> None:
    found = chapters("CHAPTER I\nCHAPTER II\n\nText.\nChapter 3: On\nMore.\n", StoryOptions().heading)
    assert found == [("CHAPTER II", "Text."), ("Chapter 3: On", "More.")]


def test_a_text_without_headings_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = novel(tmp_path, "No heading. " * 400)
    with pytest.raises(DataError, match=r"rain.txt has no line that is the heading.*options.heading.*options.pieces_of_words"):
        read(path)
    assert read(path, options={"pieces_of_words": 100}).rows


def test_rows_of_chapters_are_told_part_after_part(tmp_path: Path) -> None:
    row = {
        "story_id": "s",
        "chapter_index": 4,
        "story_text": "Before.",
        "next_chapter": "CHAPTER 4\n" + "word " * 300,
        "character_sheets": {"Ann": "A clerk.", "Bob": ""},
        "high_level_plot_summary": "It ends.",
        "prior_plot_summary": "It began.",
        "next_chapter_synopsis": "They meet.",
        "next_chapter_header": "CHAPTER 4",
    }
    path = tmp_path / "chapters.jsonl"
    late = {**row, "chapter_index": 1}
    path.write_text("".join(json.dumps(each) + "\n" for each in (row, late, {"story_text": "x"})))
    found = read(path, max_bad_fraction=0.5)
    [got] = found.rows
    assert got["id"] == "s:4"
    assert got["prompt"][0]["content"] == (
        "Of a story you are given: plan of the story, summary so far, characters, previous chapter, synopsis of the next chapter, heading "
        "of the next chapter.\n\n### Plan of the story ###\nIt ends.\n\n### Summary so far ###\nIt began.\n\n### Characters ###\n"
        "Ann: A clerk.\n\n### Previous chapter ###\nBefore.\n\n### Synopsis of the next chapter ###\nThey meet.\n\n"
        "### Heading of the next chapter ###\nCHAPTER 4"
    )
    assert completion(got) == row["next_chapter"]
    assert found.n_bad == 1 and "story_text and next_chapter" in found.bad[0]["reason"]


def test_columns_of_chapters_are_renamed_before_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "chapters.jsonl"
    row = {"before": "Before.", "after": "word " * 300, "story_text": "not this", "id": 7}
    path.write_text(json.dumps(row) + "\n")
    columns = {"before": "story_text", "after": "next_chapter", "story_text": "other"}
    [got] = read(path, columns=columns).rows
    assert got["prompt"][0]["content"].endswith("### Previous chapter ###\nBefore.")
    assert (got["id"], extra_of(got)["other"]) == ("7", "not this")
    twice = read(path, max_bad_fraction=1.0, columns={"before": "story_text", "after": "next_chapter"})
    assert "two columns 'story_text'" in twice.bad[0]["reason"]


def test_when_no_chapter_is_left_it_says_why(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"has no rows; 1 chapters .*before it; 1 .*before chapter 2; 2 .*not between 9999 and .*its options"
    ):
        read(novel(tmp_path), options={"least_words": 9999, "most_words": 20000})


def test_words_are_counted_between_single_spaces() -> None:
    assert words("a few  words") == 4


def test_an_instruction_is_for_the_policy_alone(tmp_path: Path) -> None:
    path = tmp_path / "jokes.jsonl"
    rows = [
        {
            "messages": [
                {"role": "system", "content": "Be funny."},
                {"role": "user", "content": f"Why {i}?"},
                {"role": "assistant", "content": "So."},
            ]
        }
        for i in range(4)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    plain, told = (
        read_source("prompts", TableSource(path=str(path), **more), "data.prompts[0]", 0.0).rows
        for more in ({}, {"instruction": "Think first."})
    )
    for bare, row in zip(plain, told, strict=True):
        assert row["prompt"][-1]["content"] == bare["prompt"][-1]["content"] + "\n\nThink first."
        assert extra_of(row)[ASKED] == bare["prompt"]
        assert extra_of(row)["response"] == extra_of(bare)["response"]


def test_an_instruction_stands_where_the_user_spoke_last(tmp_path: Path) -> None:
    call = {"type": "function", "id": "1", "function": {"name": "clock", "arguments": "{}"}}
    turns = [
        {"role": "user", "content": "What time is it?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "noon", "tool_call_id": "1"},
    ]
    path = tmp_path / "calls.jsonl"
    path.write_text(json.dumps({"prompt": turns, "label": "12"}) + "\n")
    source = TableSource(path=str(path), instruction="Think.")
    [row] = read_source("prompts", source, "data.prompts[0]", 0.0).rows
    assert [turn["content"] for turn in row["prompt"]] == ["What time is it?\n\nThink.", "", "noon"]


@pytest.mark.parametrize("index", ["Epilogue", 2.5])
def test_a_chapter_without_a_number_is_refused_by_row(tmp_path: Path, index: object) -> None:
    path = tmp_path / "chapters.jsonl"
    path.write_text(json.dumps({"story_text": "a", "next_chapter": "word " * 300, "chapter_index": index}) + "\n")
    assert "'chapter_index' is" in read(path, max_bad_fraction=1.0).bad[0]["reason"]


def test_a_column_that_an_instruction_would_hide_is_told(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "Why?", "asked": "mine"}) + "\n")
    found = read_source("prompts", TableSource(path=str(path), instruction="Think."), "data.prompts[0]", 1.0)
    assert "has a column 'asked'" in found.bad[0]["reason"]


def test_rows_stand_in_the_split_that_their_source_says(tmp_path: Path) -> None:
    sources = []
    for split, names in (("train", "ab"), ("validation", "cd"), ("test", "ef")):
        path = tmp_path / f"{split}.jsonl"
        path.write_text("".join(json.dumps({"prompt": f"Why {name}?", "label": name}) + "\n" for name in names))
        sources.append(TableSource(path=str(path), into=split))  # type: ignore[arg-type]
    config = DataConfig(procedures=None, prompts=sources)
    prepare(config, tmp_path / "out", seed=1)
    found = {
        split: [row["label"] for row in read_table("prompts", tmp_path / "out" / "prompts" / f"{split}.parquet").to_pylist()]
        for split in ("train", "validation", "test")
    }
    assert found == {"train": ["a", "b"], "validation": ["c", "d"], "test": ["e", "f"]}


def test_a_prompt_that_two_splits_were_given_is_a_leak(tmp_path: Path) -> None:
    sources = []
    for split in ("train", "test"):
        path = tmp_path / f"{split}.jsonl"
        path.write_text(
            json.dumps({"prompt": "Why?", "label": split}) + "\n" + json.dumps({"prompt": split, "label": split}) + "\n"
        )
        sources.append(TableSource(path=str(path), into=split))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="leak"):
        prepare(DataConfig(procedures=None, prompts=sources), tmp_path / "out", seed=1)


def test_no_prompt_is_moved_out_of_the_split_that_it_was_given(tmp_path: Path) -> None:
    """An empty split is filled from the others, but not with those."""
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Why {i}?"}) + "\n" for i in range(5)))
    summary = prepare(DataConfig(procedures=None, prompts=[TableSource(path=str(path), into="train")]), tmp_path / "out", seed=1)
    assert summary["rows"]["prompts"] == {"train": 5, "validation": 0, "test": 0}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"kind": "stories", "options": {"pieces": 10}}, "pieces"),
        ({"kind": "stories", "options": {"heading": "("}}, "no regular expression"),
        ({"into": "dev"}, "train"),
        ({"kind": "stories", "subset": "x"}, "subset only apply"),
    ],
)
def test_sources_that_cannot_be_are_refused(tmp_path: Path, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        TableSource(path=str(tmp_path), **settings)


def test_instructions_are_for_prompts(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="instruction is for sources of the prompts table"):
        DataConfig(sft=[TableSource(path=str(tmp_path), instruction="Think.")])


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no file or folder"):
        read(tmp_path / "none")
