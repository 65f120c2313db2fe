"""Encoding from the last turn's end on gives the tokens that encoding everything gives, for every make of tokenizer."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from template_cases import CHATML, CORPUS, byte_level, cases, sentence_piece
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rlhf_core.batching.growing import GrowingTokens, always_splits
from rlhf_core.batching.templates import Renderer

END = "<|im_end|>"
IM_TOKENS = ["<|endoftext|>", "<|im_start|>", END]


def made_of(pre: Any, normalizer: Any = None, model: Any = None, **end: bool) -> PreTrainedTokenizerFast:
    """A tokenizer of these parts, with ChatML's tokens added afterwards, `end` saying how the end of turn is found."""
    tokenizer = Tokenizer(model or models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    alphabet = [chr(code) for code in range(33, 127)] + ["\n", "▁", " "]
    kind = trainers.UnigramTrainer if isinstance(model, models.Unigram) else trainers.BpeTrainer
    extra = {"unk_token": "<unk>"} if kind is trainers.UnigramTrainer else {}
    trainer = kind(vocab_size=350, special_tokens=["<unk>"], initial_alphabet=alphabet, show_progress=False, **extra)
    tokenizer.train_from_iterator([*CORPUS, "\n\n \n\n a fine"], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END, unk_token="<unk>")
    added = [
        AddedToken("<|im_start|>", special=True, normalized=False),
        AddedToken(END, special=True, **{"normalized": False, **end}),
    ]
    fast.add_tokens(added, special_tokens=True)
    return fast


FIRST = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
TOKENIZERS = {
    "byte-level": byte_level(IM_TOKENS, bos=None, eos=END),
    "byte-level-prefix": made_of(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "sentencepiece": sentence_piece(["<s>", "<|im_start|>", END], bos="<s>", eos=END, prepends_space=False),
    "sentencepiece-prepends": sentence_piece(["<s>", "<|im_start|>", END], bos="<s>", eos=END, prepends_space=True),
    "metaspace-first": made_of(FIRST),
    "metaspace-always": made_of(pre_tokenizers.Metaspace(prepend_scheme="always", split=False)),
    "unigram": made_of(pre_tokenizers.Metaspace(prepend_scheme="first"), normalizers.NFKC(), models.Unigram()),
    "lower-case": made_of(pre_tokenizers.Whitespace(), normalizers.Sequence([normalizers.Strip(), normalizers.Lowercase()])),
    "end-strips-right": made_of(FIRST, rstrip=True),
    "end-strips-left": made_of(FIRST, lstrip=True),
    "end-normalized": made_of(FIRST, normalizers.NFKC(), normalized=True),
    "end-single-word": made_of(FIRST, single_word=True),
}
each_tokenizer = pytest.mark.parametrize("name", TOKENIZERS)
# What merges, strips, composes and imitates the control tokens.
contents = st.lists(
    st.sampled_from(
        ["a", " ", "\n", "\n\n", "fine", " fine", "Ä", "user", END, "<|im_start|>", "▁", "\u0338", "ﬁ", "Assistant:\n"]
    ),
    max_size=6,
).map("".join)
conversations = st.lists(contents, min_size=2, max_size=6).map(
    lambda texts: [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
)


@each_tokenizer
@given(messages=conversations)
def test_tokens_are_those_of_the_whole_text_unless_a_merge_would_change_earlier_ones(
    name: str, messages: list[dict[str, str]]
) -> None:
    tokenizer = TOKENIZERS[name]

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False))

    split = END if always_splits(tokenizer, END) else None
    text, whole, grown = "", GrowingTokens(encode, None), GrowingTokens(encode, split)
    for message in messages:
        learnt = message["role"] == "assistant"
        piece = message["content"] + END if learnt else f"\n<|im_start|>user\n{message['content']}{END}\n<|im_start|>assistant\n"
        whole.add(piece)
        grown.add(piece)
        text += piece
        if whole.ids != encode(text):
            return
        assert grown.ids == whole.ids
        if learnt:
            grown.end_turn(tokenizer.convert_tokens_to_ids(END))


@pytest.mark.parametrize("name", [name for name in TOKENIZERS if always_splits(TOKENIZERS[name], END)])
@given(messages=conversations)
def test_an_answer_has_the_same_tokens_whether_earlier_ones_are_learnt_or_stand_in_its_prompt(
    name: str, messages: list[dict[str, str]]
) -> None:
    renderer = Renderer(TOKENIZERS[name], CHATML)
    last = len(messages) - 1 if messages[-1]["role"] == "assistant" else len(messages) - 2
    alone = renderer.prompt_and_response(messages[:last], messages[last : last + 1])
    together = renderer.conversation(messages)
    answer = alone.ids[alone.prompt_length :]
    assert together.ids[-len(answer) :] == answer
    assert together.is_target[-len(answer) - 1 :] == [False] + [True] * len(answer)


def test_where_a_token_may_be_missed_everything_is_encoded() -> None:
    assert [name for name in TOKENIZERS if not always_splits(TOKENIZERS[name], END)] == ["end-normalized", "end-single-word"]
    longer = made_of(FIRST)
    longer.add_tokens([AddedToken(END + "\n", normalized=False)])
    assert not always_splits(longer, END)


@pytest.mark.parametrize("case", [case for case in cases() if case.keeps_turns], ids=lambda case: case.name)
def test_encoded_text_grows_with_the_conversation_and_not_with_its_square(case: Any) -> None:
    def encoded_characters(turns: int) -> int:
        renderer, counted = case.renderer(), 0
        encode = renderer._literal.encode

        def count(text: str) -> list[int]:
            nonlocal counted
            counted += len(text)
            return encode(text)

        renderer._literal.encode = count
        renderer.conversation(case.messages * turns)
        return counted

    assert encoded_characters(32) <= 8.5 * encoded_characters(4)
