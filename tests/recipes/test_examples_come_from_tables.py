"""Tables become token rows, or an error that names the table, the row and what to do."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from data_processing.errors import ConfigError, DataError
from data_processing.schemas import to_table, write_table
from rlhf_core.batching.templates import Renderer
from rlhf_core.recipes.examples import Example, conversation, digest, keep_fitting, pair, read_examples
from rlhf_core.recipes.sft import train_sft
from rlhf_core.settings.supervised import SftConfig
from tests.recipes.small_jobs import events, job, preference_row, sft_config, sft_row, summary, write_data
from tests.tiny_models import CHATML, tiny_tokenizer

BACKWARDS = {"id": "backwards", "messages": [{"role": "assistant", "content": "first"}]}
# The last answer gets an empty think block, which it loses once the conversation goes on.
THINKING = CHATML.replace(
    "+ message['content']",
    "+ ('<think>\n\n</think>\n\n' if loop.last and message['role'] == 'assistant' else '') + message['content']",
)


def write_sft(folder: Path, *rows: Mapping[str, Any]) -> None:
    write_table("sft", to_table("sft", rows), folder / "sft" / "train.parquet")


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
    write_sft(tmp_path, sft_row(1), {"id": "silent", "messages": [{"role": "user", "content": "anybody?"}]})
    with pytest.raises(DataError, match=r"silent.*not a single token to learn from"):
        read_examples(tmp_path, "sft", "train", partial(conversation, renderer))


def test_a_row_that_cannot_be_rendered_is_named(tmp_path: Path, renderer: Renderer) -> None:
    write_sft(tmp_path, sft_row(1), BACKWARDS)
    with pytest.raises(DataError, match=r"1 of the first 2 of 2 rows.*table 'sft', row 1 \(id backwards\): .*assistant turn"):
        read_examples(tmp_path, "sft", "train", partial(conversation, renderer))


def test_rows_that_cannot_be_rendered_are_left_out_and_named_up_to_the_allowed_share(tmp_path: Path, renderer: Renderer) -> None:
    write_sft(tmp_path, *map(sft_row, range(9)), BACKWARDS)
    examples, refused = read_examples(tmp_path, "sft", "train", partial(conversation, renderer), 0.1)
    assert [example.id for example in examples] == [f"row{number}" for number in range(9)]
    assert len(refused) == 1 and "row 9 (id backwards)" in refused[0]


def test_a_template_that_refuses_every_row_ends_the_stage_at_the_share_and_not_at_the_last_row(tmp_path: Path) -> None:
    drops_reasoning = Renderer(tiny_tokenizer("qwen3"), THINKING)
    turns = [*sft_row(1)["messages"], *sft_row(2)["messages"]]
    write_sft(tmp_path, *({"id": f"row{number}", "messages": turns} for number in range(100)))
    seen = 0

    def render(row: Mapping[str, Any]) -> Example:
        nonlocal seen
        seen += 1
        return conversation(drops_reasoning, row)

    with pytest.raises(DataError, match=r"6 of the first 6 of 100 rows.*once it follows.*qwen3\)"):
        read_examples(tmp_path, "sft", "train", render, 0.05)
    assert seen == 6


def test_an_error_of_python_inside_the_template_is_one_of_the_settings_and_names_the_row(tmp_path: Path) -> None:
    adds_a_number = CHATML.replace("message['content'] +", "message['content'] + (1 if loop.index > 2 else '') +")
    write_sft(tmp_path, sft_row(1), {"id": "long", "messages": [*sft_row(1)["messages"], *sft_row(2)["messages"]]})
    with pytest.raises(ConfigError, match=r"row 1 \(id long\).*TypeError: can only concatenate str"):
        read_examples(tmp_path, "sft", "train", partial(conversation, Renderer(tiny_tokenizer("llama"), adds_a_number)), 1.0)


def test_a_pair_with_the_same_tokens_on_both_sides_is_left_out_like_equal_answers(tmp_path: Path) -> None:
    trims = Renderer(tiny_tokenizer("llama"), CHATML.replace("message['content'] +", "message['content'] | trim +"))
    answer = preference_row(1)["chosen"][0]
    tie = preference_row(1) | {"id": "tie", "rejected": [{**answer, "content": answer["content"] + " \n"}]}
    write_table("preference", to_table("preference", [preference_row(0), tie]), tmp_path / "preference" / "train.parquet")
    examples, refused = read_examples(tmp_path, "preference", "train", partial(pair, trims), 0.5)
    assert [example.id for example in examples] == ["row0"]
    assert "(id tie): chosen and rejected have the same tokens" in refused[0]


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


def test_a_stage_trains_on_the_other_rows_and_says_which_were_left_out(models: dict[Any, Path], tmp_path: Path) -> None:
    write_sft(tmp_path / "data", *map(sft_row, range(19)), BACKWARDS)
    run = job(sft_config(max_steps=1, max_dropped_fraction=0.05), models["llama"], tmp_path / "data", tmp_path)
    train_sft(run)
    assert (summary(run)["train_rows"], summary(run)["refused_rows"], summary(run)["dropped_rows"]) == (19, 1, 0)
    assert any("1 rows were left out: table 'sft', row 19 (id backwards)" in event["message"] for event in events(run, "warning"))
