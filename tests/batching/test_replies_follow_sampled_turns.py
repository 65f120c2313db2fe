"""What an environment says is rendered behind the very tokens that were sampled, as the template has it in a whole conversation."""

from __future__ import annotations

import pytest
from family_cases import GPT_OSS, LLAMA32, QWEN3, SMOLLM3
from hypothesis import given, settings
from hypothesis import strategies as st
from template_cases import CHATML, byte_level

from data_processing.errors import DataError
from rlhf_core.batching.templates import PLAIN_TEMPLATE, Renderer

ASKED = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "What is it?"}]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
SPECIAL += ["<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>"]
TEMPLATES = {"chatml": CHATML, "llama": LLAMA32, "qwen3": QWEN3, "smollm3": SMOLLM3, "gpt_oss": GPT_OSS, "plain": PLAIN_TEMPLATE}


def renderer(name: str) -> Renderer:
    eos = {"llama": "<|eot_id|>", "gpt_oss": "<|return|>"}.get(name, "<|im_end|>")
    return Renderer(byte_level(SPECIAL, bos="<|endoftext|>", eos=eos), TEMPLATES[name])


@pytest.mark.parametrize("name", ["chatml", "llama", "plain"])
def test_prompt_turn_and_reply_are_the_tokens_of_the_whole_conversation(name: str) -> None:
    made = renderer(name)
    turn, reply = {"role": "assistant", "content": "It is so."}, [{"role": "user", "content": "Are you sure?"}]
    said = made.prompt_and_response(ASKED, [turn])
    assert [*said.ids, *made.reply_ids(ASKED, turn, reply)] == made.prompt_ids([*ASKED, turn, *reply])


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_reply_is_what_the_template_says_whatever_the_turn_was(name: str) -> None:
    made = renderer(name)
    reply = [{"role": "user", "content": "Are you sure?"}]
    found = [
        made.reply_ids(ASKED, {"role": "assistant", "content": content}, reply)
        for content in ("Yes.", "<think>\nhm\n</think>\n\nYes.", "", "  spaces  ")
    ]
    assert found[0] == found[1] == found[2] == found[3]
    text = made.tokenizer.decode(found[0])
    assert text.count("Are you sure?") == 1 and "What is it?" not in text and "said" not in text
    opening = made.tokenizer.decode(made.prompt_ids([{"role": "user", "content": "Are you sure?"}]))
    assert text.strip()[-12:] == opening.strip()[-12:], "it ends as a prompt does"


def test_several_exchanges_go_on_one_after_the_other() -> None:
    made = renderer("chatml")
    turns = [{"role": "assistant", "content": f"answer {i}"} for i in range(3)]
    replies = [[{"role": "user", "content": f"no {i}"}] for i in range(3)]
    ids, before = made.prompt_ids(ASKED), list(ASKED)
    for turn, reply in zip(turns, replies, strict=True):
        ids += made.tokenizer(turn["content"] + "<|im_end|>", add_special_tokens=False)["input_ids"]
        ids += made.reply_ids(before, turn, reply)
        before += [turn, *reply]
    assert ids == made.prompt_ids(before)


@settings(max_examples=30, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs", "Cn", "Co"]), min_size=1, max_size=12).filter(str.strip))
def test_control_tokens_that_an_environment_types_are_text(text: str) -> None:
    made = renderer("chatml")
    reply = [{"role": "user", "content": f"{text}<|im_end|>{text}"}]
    ids = made.reply_ids(ASKED, {"role": "assistant", "content": "x"}, reply)
    ends = made.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert ids.count(ends) == 1, "only the template's own"


def test_a_reply_that_a_template_leaves_out_is_refused() -> None:
    silent = (
        "{% for m in messages if m['role'] != 'tool' %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    )
    silent += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    made = Renderer(byte_level(SPECIAL, bos="<|endoftext|>", eos="<|im_end|>"), silent)
    with pytest.raises(DataError):
        made.reply_ids(ASKED, {"role": "assistant", "content": "x"}, [{"role": "tool", "content": "42"}])
