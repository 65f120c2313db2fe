"""Units are spans of the tokens that were generated, whatever the tokenizer: by label, by entropy, thinking apart."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rlhf_core.credit.spans import Spelled, spell, spell_bytes
from rlhf_core.credit.units import content_region, entropy_units, label_units, labelled_token_units, thinking_end
from tests.batching.template_cases import byte_level

END = "<|im_end|>"
SPECIAL = ["<s>", "<|im_start|>", END]


def with_byte_fallback() -> PreTrainedTokenizerFast:
    """Characters, and bytes for those that it does not know, as SentencePiece has it."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *map(chr, range(33, 127)), "\u2581", "go", "\u2581go", "one"]
    merges = [("g", "o"), ("\u2581", "go"), ("o", "n"), ("on", "e")]
    vocabulary = {piece: i for i, piece in enumerate([*pieces, "on"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    fast.add_special_tokens({"eos_token": END})
    return fast


TOKENIZERS = {"byte-level": byte_level(SPECIAL, bos=None, eos=END), "sentencepiece": with_byte_fallback()}
each_tokenizer = pytest.mark.parametrize("name", TOKENIZERS)
TEXTS = [
    "A. go left\nB. stop",
    "Plan:\nA. café 😀 ok.\n\n\nB. 测试 end!\n",
    "1. one\r\n2. two \t \r\n3. three   ",
    "\n\n*1. first\n*B. second\n",
    "no label here",
    "",
    "A.\nB.\nC.",
    "A. ﬁne Ä\u0338 \u200b x\n12. 👩‍🚀 y",
]


def spelled(name: str, text: str, *, ends: bool = True) -> tuple[Spelled, list[int]]:
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode(text, add_special_tokens=False) + ([tokenizer.convert_tokens_to_ids(END)] if ends else [])
    found = spell(ids, tokenizer)
    assert found is not None
    return found, ids


@each_tokenizer
@pytest.mark.parametrize("text", TEXTS)
def test_the_tokens_of_a_unit_spell_it(name: str, text: str) -> None:
    found, ids = spelled(name, text)
    tokenizer = TOKENIZERS[name]
    assert found.text == tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    region = content_region(found, True, 0)
    units = labelled_token_units(found, region, 0, 10)
    wanted = [found.text[start:end] for start, end in label_units(found.text, 10)]
    assert [
        tokenizer.decode(ids[start:end], skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()
        for start, end in units
    ] == wanted
    assert all(region[0] <= start < end <= region[1] for start, end in units)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(units))


@each_tokenizer
@given(
    text=st.text(st.sampled_from("A1.*\n\r\t aé😀测 -<>"), max_size=60),
    max_units=st.integers(1, 5),
    entropies=st.lists(st.floats(0, 4), min_size=300, max_size=300),
)
def test_units_are_ordered_disjoint_and_few(name: str, text: str, max_units: int, entropies: list[float]) -> None:
    found, _ = spelled(name, text)
    region = content_region(found, True, 0)
    labelled = labelled_token_units(found, region, 0, max_units)
    tiled = entropy_units(entropies, region, 1.5, max_units=max_units)
    for units in (labelled, tiled):
        assert len(units) <= max_units
        assert all(region[0] <= start < end <= region[1] for start, end in units)
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(units))
    assert [place for start, end in tiled for place in range(start, end)] == list(range(*region))
    assert [span[1] for span in found.spans] == sorted(span[1] for span in found.spans)


def test_a_tokenizer_that_loses_text_is_told_and_not_guessed() -> None:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(
        ["A . go left now", "B . stop"], trainers.WordPieceTrainer(special_tokens=["[UNK]"], show_progress=False)
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="[UNK]")
    found = spell(fast.encode("A. go\nB. left"), fast)
    assert found is None or found.text == fast.decode(fast.encode("A. go\nB. left"), skip_special_tokens=True)


def test_a_broken_character_belongs_to_its_own_bytes() -> None:
    found = spell_bytes([b"\xe6", b"\xb5A", b"\xf0\x9f", b"\x98\x80", b"", b"\xff"])
    assert found.text == "\ufffdA😀\ufffd"
    assert found.spans == [(0, 1), (0, 2), (2, 3), (2, 3), (3, 3), (3, 4)]


def test_a_broken_character_at_the_end_is_spelled() -> None:
    tokenizer = TOKENIZERS["byte-level"]
    ids = tokenizer.encode("A. 😀", add_special_tokens=False)
    for cut in range(1, len(ids) + 1):
        found = spell(ids[:cut], tokenizer)
        assert found is not None and found.spans[-1][1] == len(found.text)


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("A. go", 0),
        ("<think>\n\n</think>\n\nA. go", 19),
        ("<think>x</think> a </think>  A. go", 29),
        ("<think>never closed", 19),
        ("already thought</think>\nA. go", 24),
    ],
)
def test_the_answer_begins_behind_the_thinking(text: str, start: int) -> None:
    assert thinking_end(text) == start


def test_a_response_of_its_end_alone_has_no_unit() -> None:
    found, _ = spelled("byte-level", "")
    assert content_region(found, True, 0) == (0, 0) and entropy_units([9.0], (0, 0), 1.5) == []
