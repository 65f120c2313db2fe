"""Rows that reasoning-gym makes: the same for the same settings, and known by the library's version."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from data_processing.config import DataConfig, TableSource
from data_processing.errors import ConfigError
from data_processing.first_prompts import first_prompts
from data_processing.prepare import prepare
from data_processing.sources.generated import entry_of, entry_text
from flows.graph.build import pinned
from flows.graph.nodes import Node
from rlhf_core.rewards.base import ScoredResponse
from tests.data.source_reading import Read, read_source
from tests.rewards.verified import scorer

pytestmark = pytest.mark.seconds


def source(path: str = "leg_counting", **fields: Any) -> TableSource:
    return TableSource.model_validate({"path": path, "kind": "reasoning_gym", "max_rows": 4, **fields})


def read(**fields: Any) -> Read:
    return read_source("prompts", source(**fields), "data.prompts[0]", 0.0)


def test_rows_are_questions_labelled_with_their_answers() -> None:
    found = read()
    assert found.n_read == 4 and found.notes == []
    for row in found.rows:
        extra = json.loads(row["extra"])
        made = entry_of(extra["entry"])
        assert row["prompt"] == [{"role": "user", "content": made["question"]}]
        assert row["label"] == made["answer"]
        assert row["source"] == extra["dataset"] == "leg_counting"


def test_the_same_settings_make_the_same_rows_and_others_others() -> None:
    rows = read().rows
    assert rows == read(max_rows=8).rows[:4]
    assert rows != read(seed=1).rows
    assert rows != read(options={"min_animals": 10}).rows


def test_the_order_of_sets_in_a_process_changes_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for seed in ("1", "2"):
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        found.append(read(path="ransom_note", max_rows=2).rows)
    assert found[0] == found[1]


def test_a_dataset_that_cannot_make_its_rows_is_an_error() -> None:
    never = {"min_sides": 3, "max_sides": 3, "min_angle": 170, "max_angle": 175}
    with pytest.raises(
        ConfigError, match=r"failed to make 4 rows of 'simple_geometry'; choose other options or rows: ValueError: "
    ):
        read(path="simple_geometry", options=never)


def test_the_reward_of_this_kind_knows_its_rows() -> None:
    checked = scorer("reasoning_gym")
    for path in ("leg_counting", "rearc", "knights_knaves"):
        [row] = read(path=path, max_rows=1).rows
        asked = [
            ScoredResponse(row["id"], row["prompt"], row["label"], [1], [2], text, json.loads(row["extra"]))
            for text in (row["label"], "?")
        ]
        right, wrong = checked.score(asked).rewards
        assert right == 1.0 > wrong


def test_a_run_is_known_by_the_librarys_version(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = {"data": Node("data", "prepare_data", DataConfig(procedures=None, prompts=[source()]), {}, 0)}
    known = []
    for version in ("0.1.25", "0.1.26"):
        monkeypatch.setattr("data_processing.sources.generated.version", lambda name, its=version: its)
        fixed = pinned(graph)["data"].settings
        assert isinstance(fixed, DataConfig) and fixed.prompts[0].revision == version
        known.append(fixed.result_fields())
    assert known[0] != known[1]
    with pytest.raises(
        ConfigError, match=r"data\.prompts\[0\]\.path: the rows are those of reasoning-gym 0\.1\.25, and 0\.1\.26"
    ):
        read(revision="0.1.25")


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"path": "leg_countng"}, "no dataset 'leg_countng'; did you mean 'leg_counting'"),
        ({"options": {"min_animls": 2}}, "no option 'min_animls'; did you mean 'min_animals'"),
        ({"options": {"size": 2}}, "no option 'size'"),
        ({"options": {"min_animals": -1}}, "refuses options .* min_animals must be positive"),
    ],
)
def test_what_the_library_does_not_have_is_refused_before_anything_runs(fields: dict[str, Any], why: str) -> None:
    graph = {"data": Node("data", "prepare_data", DataConfig(procedures=None, prompts=[source(**fields)]), {}, 0)}
    with pytest.raises(ConfigError, match=rf"data\.prompts\[0\].*{why}"):
        pinned(graph)


def test_the_fields_of_one_kind_are_refused_for_another() -> None:
    with pytest.raises(ValidationError, match="max_rows is needed"):
        source(max_rows=None)
    with pytest.raises(ValidationError, match="subset only apply to kind 'huggingface'"):
        source(subset="main")
    with pytest.raises(ValidationError, match="seed, options only apply to kind 'reasoning_gym'"):
        TableSource(path="rows.jsonl", seed=1, options={"a": 1})


def test_a_missing_library_says_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_processing.sources.generated._LIBRARY", "no-such-library")
    with pytest.raises(ConfigError, match=r'not installed: pip install "alignflow\[rewards\]"'):
        read()


def test_rows_become_tables_and_the_first_are_had_before(tmp_path: Path) -> None:
    config = DataConfig(procedures=None, prompts=[source(max_rows=20)], test_fraction=0.2)
    summary = prepare(config, tmp_path, seed=0)
    assert sum(summary["rows"]["prompts"].values()) == 20
    assert [row["label"] for row in first_prompts(config, 2, seed=0)] == [row["label"] for row in read(max_rows=2).rows]


class Colour(Enum):
    RED = "red"


JSON_AND_MORE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text() | st.integers(), inner) | st.sets(st.integers())
    ),
)


@given(JSON_AND_MORE)
def test_an_entry_comes_back_as_it_was(entry: Any) -> None:
    back = entry_of(entry_text(entry))
    assert back == entry and repr(type(back)) == repr(type(entry))


def test_what_json_has_no_word_for_is_its_value() -> None:
    assert entry_of(entry_text({"a": Colour.RED})) == {"a": "red"}
