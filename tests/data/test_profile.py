"""What the rows of a table are like: near-duplicates are found and others are not, in time that grows with the rows; scripts; lengths."""

from __future__ import annotations

import json
import random
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from data_processing import profile as profiling
from data_processing.config import DataConfig
from data_processing.near_duplicates import ALIKE, MinHash, near_duplicates
from data_processing.prepare import prepare
from data_processing.profile import add_profile, near_copies
from data_processing.scripts import script_of
from rlhf_core.events import EventLog
from tasks.prepare_data import STAGE
from tasks.runtime.contract.context import StageContext

WORDS = [f"w{number}" for number in range(5000)]


def written(rng: random.Random, n_words: int) -> list[str]:
    return rng.choices(WORDS, k=n_words)


def pairs_in(texts: list[str]) -> list[tuple[int, int, float]]:
    return list(near_duplicates(MinHash().signatures(pa.array(texts, pa.string()))))


def test_texts_that_differ_in_a_few_words_are_found_and_others_are_not() -> None:
    rng = random.Random(0)
    texts, copies = [], {}
    for _ in range(300):
        words = written(rng, 120)
        texts.append(" ".join(words))
        words[rng.randrange(120)] = "another"
        copies[len(texts)] = len(texts) - 1
        texts.append(" ".join(words).upper().replace(" ", ",\n"))
        texts.append(" ".join(written(rng, 120)))
    found = {row: first for row, first, share in pairs_in(texts) if share >= ALIKE}
    assert found.items() <= copies.items(), "nothing is called alike that is not"
    assert len(found) >= 0.97 * len(copies)


def threes(words: list[str]) -> set[tuple[str, ...]]:
    padded = [*words, "", ""]
    return {tuple(padded[i : i + 3]) for i in range(len(words))}


@pytest.mark.parametrize("changed", [2, 10, 30, 60])
def test_the_share_of_equal_places_is_that_of_the_words_in_threes(changed: int) -> None:
    rng = random.Random(changed)
    shares, true = [], []
    for _ in range(60):
        words = written(rng, 200)
        other = list(words)
        for place in rng.sample(range(200), changed):
            other[place] = "another"
        one, two = MinHash().signatures(pa.array([" ".join(words), " ".join(other)]))
        shares.append((one == two).mean())
        true.append(len(threes(words) & threes(other)) / len(threes(words) | threes(other)))
    assert np.mean(shares) == pytest.approx(np.mean(true), abs=0.05)


def test_short_and_empty_texts_and_scripts_without_spaces() -> None:
    texts = [
        "",
        " ",
        "\u3002",
        "yes",
        "Yes!",
        "no",
        "今日は良い天気ですね散歩に行きましょう",
        "今日は良い天気ですね、散歩に行きましょう。",
        "",
        "!?",
    ]
    assert [(row, first) for row, first, _ in pairs_in(texts)] == [(4, 3)]
    long = "今日は良い天気ですね散歩に行きましょうそして公園で昼ご飯を食べて夕方に帰ります" * 2
    assert [(row, first) for row, first, _ in pairs_in([long, long[:-1], long[::-1]])] == [(1, 0)]


def test_a_word_is_the_same_wherever_it_stands_in_a_batch() -> None:
    hasher = MinHash()
    alone = hasher.signatures(pa.array(["The ferry leaves at noon from pier 3"]))[0]
    together = hasher.signatures(pa.array(["x" * 999, "", "é" * 99, "the FERRY leaves at noon, from pier 3."]))[3]
    assert (alone == together).all()


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Which ferry?", "Latin"),
        ("Où est-ce? 12", "Latin"),
        ("Где паром?", "Cyrillic"),
        ("渡轮在哪里？", "Han"),
        ("フェリーはどこですか", "Kana"),
        ("渡船はどこですか", "Japanese (Han and Kana)"),
        ("나룻배는 어디에 있습니까", "Hangul"),
        ("أين العبارة؟", "Arabic"),
        ("नाव कहाँ है", "Devanagari"),
        ("12 + 12 = 24", "no letters"),
        ("", "no letters"),
        ("ꓛꓡꓳ", "other"),
    ],
)
def test_scripts_are_told_by_their_letters(text: str, script: str) -> None:
    assert script_of(text) == script


def rows_file(path: Path, texts: list[str]) -> dict[str, Any]:
    lines = [json.dumps({"prompt": text, "response": "Heron."}) for text in texts]
    path.write_text("\n".join(lines), encoding="utf-8")
    return {"path": str(path)}


def test_the_artifact_says_what_its_rows_are_like(tmp_path: Path) -> None:
    rng = random.Random(1)
    texts = [" ".join(written(rng, 60)) for _ in range(200)]
    texts += [f"{text} more" for text in texts[:50]] + ["Где паром стоит сегодня"]
    source = rows_file(tmp_path / "rows.jsonl", texts)
    config = DataConfig.model_validate({"procedures": None, "sft": [source], "test_fraction": 0.3})
    (tmp_path / "out").mkdir()
    events = EventLog(tmp_path / "events.jsonl")
    STAGE.run(StageContext(config, {}, {}, tmp_path / "out", tmp_path, 0, 1, events))
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    seen = summary["profile"]["sft"]
    assert seen["rows"] == {"looked_at": 251, "of": 251}
    assert seen["characters"]["longest"] == max(map(len, texts)) + len("\nHeron.")
    assert seen["scripts"] == {"Latin": round(250 / 251, 4), "Cyrillic": round(1 / 251, 4)}
    near = seen["near_duplicates"]
    assert 45 <= near["count"] <= 50 and 5 < near["across_splits"] < 45
    assert re.fullmatch(r"(\w+) id \w+ is close to (?!\1)\w+ id \w+ \(9\d% in common\)", near["listed"][0])
    said = [json.loads(line) for line in events.path.read_text().splitlines()]
    assert any(event["type"] == "warning" and "nearly the same as a row in another split" in event["message"] for event in said)
    assert list(near_copies({"sft": {"near_duplicates": {"across_splits": 0}}})) == []


def test_of_a_large_table_some_rows_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "MOST_ROWS", 50)
    source = rows_file(tmp_path / "rows.jsonl", [f"Question {number}" for number in range(300)])
    prepare(DataConfig.model_validate({"procedures": None, "prompts": [source]}), tmp_path / "out", seed=0)
    seen = add_profile(tmp_path / "out")
    assert seen["prompts"]["rows"] == {"looked_at": 50, "of": 300}
    assert add_profile(tmp_path / "out") == seen


def test_twenty_thousand_texts_take_seconds() -> None:
    rng = random.Random(0)
    sentences = [" ".join(written(rng, 12)) for _ in range(3000)]
    texts = [" ".join(rng.choices(sentences, k=12)) for _ in range(20_000)]
    hasher, began = MinHash(), time.process_time()
    signatures = np.concatenate([hasher.signatures(pa.array(texts[i : i + 1000])) for i in range(0, len(texts), 1000)])
    list(near_duplicates(signatures))
    assert time.process_time() - began < 8.0
