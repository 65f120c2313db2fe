"""Tables become token rows, or an error that names the table, the row and what to do."""

from functools import partial
from pathlib import Path

import pytest

from data_processing.errors import DataError
from data_processing.schemas import to_table, write_table
from rlhf_core.batching.templates import Renderer
from rlhf_core.config import SftConfig
from rlhf_core.recipes.examples import Example, conversation, digest, keep_fitting, pair, read_examples
from tests.recipes.small_jobs import preference_row, sft_config, sft_row, write_data
from tests.tiny_models import tiny_tokenizer


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(tiny_tokenizer("llama"))


@pytest.fixture
def pairs(tmp_path: Path, renderer: Renderer) -> list[Example]:
    return read_examples(write_data(tmp_path), "preference", "train", partial(pair, renderer))[0]


def test_pairs_share_their_prompt_and_keep_their_margin(pairs: list[Example], renderer: Renderer) -> None:
    first, second = pairs[0], pairs[1]
    prompt = renderer.prompt_ids(preference_row(0)["prompt"])
    assert [row.ids[: len(prompt)] for row in first.rows] == [prompt, prompt]
    assert [row.is_target[len(prompt) - 1] for row in first.rows] == [False, False]
    assert (first.margin, second.margin) == (0.5, 0.0)


def test_the_end_token_is_the_last_token_and_a_target(pairs: list[Example], renderer: Renderer) -> None:
    for row in (row for example in pairs for row in example.rows):
        assert row.ids[-1] in renderer.stop_ids
        assert row.is_target[-1]


def test_a_missing_training_table_names_the_settings_that_make_it(tmp_path: Path, renderer: Renderer) -> None:
    with pytest.raises(DataError, match=r"no sft/train.parquet.*prepare_data.*data\.procedures\.sft_rows"):
        read_examples(tmp_path, "sft", "train", partial(conversation, renderer))


def test_a_missing_validation_table_has_no_rows(tmp_path: Path, renderer: Renderer) -> None:
    assert read_examples(tmp_path, "sft", "validation", partial(conversation, renderer)) == ([], [])


def test_a_conversation_without_an_answer_is_named(tmp_path: Path, renderer: Renderer) -> None:
    rows = [sft_row(1), {"id": "silent", "messages": [{"role": "user", "content": "anybody?"}]}]
    write_table("sft", to_table("sft", rows), tmp_path / "sft" / "train.parquet")
    with pytest.raises(DataError, match="silent"):
        read_examples(tmp_path, "sft", "train", partial(conversation, renderer))


def test_a_row_that_cannot_be_rendered_is_named(tmp_path: Path, renderer: Renderer) -> None:
    rows = [sft_row(1), {"id": "backwards", "messages": [{"role": "assistant", "content": "first"}]}]
    write_table("sft", to_table("sft", rows), tmp_path / "sft" / "train.parquet")
    with pytest.raises(DataError, match=r"table 'sft', row 1 \(id backwards\)"):
        read_examples(tmp_path, "sft", "train", partial(conversation, renderer))


def test_a_pair_goes_as_one_when_its_longer_row_is_too_long(pairs: list[Example]) -> None:
    longest = max(len(row) for example in pairs for row in example.rows)
    config = sft_config(max_length_tokens=longest - 1, overlong="drop", max_dropped_fraction=0.9)
    kept = keep_fitting(pairs, config)
    assert 0 < len(kept) < len(pairs)
    assert all(len(row) < longest for example in kept for row in example.rows)


@pytest.mark.parametrize("policy", ["error", "drop"])
def test_too_many_overlong_rows_stop_the_stage(pairs: list[Example], policy: str) -> None:
    config: SftConfig = sft_config(max_length_tokens=8, overlong=policy)
    with pytest.raises(DataError, match="max_length_tokens=8"):
        keep_fitting(pairs, config)


def test_the_digest_changes_with_tokens_and_margins(pairs: list[Example]) -> None:
    assert digest(pairs) == digest(list(pairs))
    assert digest(pairs) != digest(pairs[::-1])
    without_margin = Example(pairs[0].id, pairs[0].rows)
    assert digest(pairs[:1]) != digest([without_margin])
