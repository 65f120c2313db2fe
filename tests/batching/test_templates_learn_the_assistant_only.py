"""Golden masks of templates as models have them, and what holds for any conversation under them."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from family_cases import family_cases
from hypothesis import given
from hypothesis import strategies as st
from template_cases import CHATML, CONVERSATION, GEMMA, THINKING, Case, byte_level, cases, sentence_piece, spans_of
from transformers import AutoTokenizer

from data_processing.errors import ConfigError, DataError
from rlhf_core.batching.rendering import write_rendering
from rlhf_core.batching.templates import Renderer

CASES = cases() + family_cases()
each_template = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
IM_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

# Spaces, line breaks, words and the templates' own markers: what makes tokens merge over borders and fools text search.
contents = st.lists(
    st.sampled_from(["a", " ", "\n", "\n\n", "fine", "Ä", "user", "assistant", "<|im_end|>", "[/INST]", "Assistant:\n"]),
    max_size=8,
).map("".join)


@each_template
def test_golden_masks(case: Case) -> None:
    row = case.renderer().conversation(case.messages)
    assert spans_of(case.tokenizer, row.ids, row.is_target) == case.spans


@each_template
def test_stop_ids_are_the_end_of_turn_and_eos(case: Case) -> None:
    expected = [case.tokenizer.convert_tokens_to_ids(token) for token in case.stop]
    assert case.renderer().stop_ids == expected


@each_template
def test_there_is_one_bos_where_the_template_has_one_and_none_elsewhere(case: Case) -> None:
    row = case.renderer().conversation(case.messages)
    if case.bos is None:
        assert row.ids[0] != case.tokenizer.bos_token_id
    else:
        assert [i for i, token in enumerate(row.ids) if token == case.tokenizer.bos_token_id] == [0]


@each_template
def test_text_path_equals_token_path(case: Case) -> None:
    renderer = case.renderer()
    text = case.tokenizer.apply_chat_template(
        case.messages[:1],
        chat_template=renderer.template,
        tokenize=False,
        add_generation_prompt=True,
        **case.rendering.arguments(),
    )
    assert case.tokenizer.encode(text, add_special_tokens=False) == renderer.prompt_ids(case.messages[:1])


@each_template
def test_the_template_in_use_saved_with_the_tokenizer_gives_the_same_tokens(case: Case, tmp_path: Path) -> None:
    renderer = case.renderer()
    tokenizer = copy.deepcopy(case.tokenizer)
    tokenizer.chat_template = renderer.template
    tokenizer.save_pretrained(tmp_path)
    write_rendering(case.rendering, tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert Renderer(loaded).conversation(case.messages) == renderer.conversation(case.messages)
    applied = loaded.apply_chat_template(
        case.messages[:1], add_generation_prompt=True, return_dict=False, **case.rendering.arguments()
    )
    assert applied == renderer.prompt_ids(case.messages[:1])


@each_template
@given(question=contents, answer=contents)
def test_any_answer_is_learnt_whole_and_after_the_prompt_that_sampling_sees(case: Case, question: str, answer: str) -> None:
    renderer = case.renderer()
    prompt = [{"role": "user", "content": question}]
    row = renderer.prompt_and_response(prompt, [{"role": "assistant", "content": answer}])
    prompt_ids = renderer.prompt_ids(prompt)
    assert row.ids[: len(prompt_ids)] == prompt_ids
    assert row.is_target == [False] * len(prompt_ids) + [True] * (len(row) - len(prompt_ids))
    assert row.ids[-1] == renderer.stop_ids[0]
    learnt = case.tokenizer.decode(row.ids[len(prompt_ids) :], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert (answer.strip() if case.trims else answer) in learnt


@pytest.mark.parametrize("case", [case for case in CASES if case.keeps_turns], ids=lambda case: case.name)
@given(texts=st.lists(contents, min_size=2, max_size=6))
def test_every_turn_of_any_conversation_has_its_own_mask(case: Case, texts: list[str]) -> None:
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    row = case.renderer().conversation(messages)
    learnt = [text for text, is_target in spans_of(case.tokenizer, row.ids, row.is_target) if is_target]
    answers = [text.strip() if case.trims else text for i, text in enumerate(texts) if i % 2]
    assert len(learnt) == len(answers)
    assert all(answer in span and span.endswith(case.stop[0]) for answer, span in zip(answers, learnt, strict=True))


@each_template
def test_only_the_response_is_learnt_after_a_prompt_with_answers(case: Case) -> None:
    renderer = case.renderer()
    row = renderer.prompt_and_response(CONVERSATION[:3], CONVERSATION[3:])
    prompt_ids = renderer.prompt_ids(CONVERSATION[:3])
    assert row.ids[: len(prompt_ids)] == prompt_ids
    assert row.is_target.index(True) == len(prompt_ids)


def test_a_template_that_drops_earlier_reasoning_is_refused_for_several_answers() -> None:
    renderer = Renderer(byte_level(IM_TOKENS, bos=None, eos="<|im_end|>"), THINKING)
    with pytest.raises(DataError, match=r"give rows with a single assistant turn"):
        renderer.conversation(CONVERSATION)


def test_a_template_without_generation_prompt_does_not_teach_its_headings() -> None:
    tokenizer = byte_level(IM_TOKENS, bos=None, eos="<|im_end|>")
    bare = Renderer(tokenizer, CHATML.split("{% if add_generation_prompt %}")[0])
    full = Renderer(tokenizer, CHATML)
    assert bare.conversation(CONVERSATION) == full.conversation(CONVERSATION)
    assert bare.prompt_ids(CONVERSATION[:1]) == full.prompt_ids(CONVERSATION[:1])


def test_eos_is_learnt_where_pad_is_eos() -> None:
    tokenizer = byte_level(IM_TOKENS, bos=None, eos="<|im_end|>")
    row = Renderer(tokenizer, CHATML).conversation(CONVERSATION)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == row.ids[-1]
    assert row.is_target[-1]


def test_a_model_without_template_whose_tokenizer_insists_on_bos_gets_one() -> None:
    tokenizer = sentence_piece(["<bos>", "<eos>"], bos="<bos>", eos="<eos>", prepends_space=False)
    row = Renderer(tokenizer).conversation(CONVERSATION)
    assert [i for i, token in enumerate(row.ids) if token == tokenizer.bos_token_id] == [0]


def test_the_tokenizers_own_template_is_used_and_can_be_replaced() -> None:
    tokenizer = byte_level(IM_TOKENS, bos=None, eos="<|im_end|>")
    tokenizer.chat_template = CHATML
    assert Renderer(tokenizer).template == CHATML
    assert Renderer(tokenizer, THINKING).template == THINKING


def test_two_bos_tokens_are_refused() -> None:
    tokenizer = sentence_piece(
        ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"], bos="<bos>", eos="<eos>", prepends_space=False
    )
    with pytest.raises(ConfigError, match="twice"):
        Renderer(tokenizer, "{{ bos_token }}" + GEMMA)


def test_a_template_that_never_ends_an_answer_is_refused() -> None:
    tokenizer = byte_level(IM_TOKENS, bos=None, eos="<|im_end|>")
    with pytest.raises(ConfigError, match="never learn to stop"):
        Renderer(tokenizer, "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}")


def test_a_broken_template_is_refused_at_once() -> None:
    tokenizer = byte_level(IM_TOKENS, bos=None, eos="<|im_end|>")
    with pytest.raises(ConfigError, match="chat_template"):
        Renderer(tokenizer, "{% for m in messages %}")


def test_a_role_the_template_refuses_is_an_error_that_names_the_roles() -> None:
    gemma = next(case for case in CASES if case.name == "gemma")
    with pytest.raises(DataError, match=r"system, user.*System role not supported"):
        Renderer(gemma.tokenizer, gemma.template).conversation([{"role": "system", "content": "Be brief."}, *CONVERSATION])


def test_a_conversation_that_starts_with_the_assistant_is_an_error() -> None:
    with pytest.raises(DataError, match="starts with an assistant turn"):
        Renderer(CASES[0].tokenizer, CASES[0].template).conversation(CONVERSATION[1:])
