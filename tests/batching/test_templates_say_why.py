"""What a template cannot render is refused with its own reason, and with the way out where there is one."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from family_cases import GPT_OSS, HARMONY_TOKENS, IM_TOKENS, QWEN3, R1, R1_TOKENS, REASONED
from template_cases import CHATML, CONVERSATION, byte_level

from data_processing.errors import ConfigError, DataError
from rlhf_core.batching.chat_templates import BUNDLED, read_template
from rlhf_core.batching.rendering import Rendering
from rlhf_core.batching.templates import Renderer
from rlhf_core.settings.models import BaseModelConfig

QWEN = byte_level(IM_TOKENS, bos=None, eos="<|im_end|>")
R1_LIKE = byte_level(R1_TOKENS, bos=R1_TOKENS[0], eos=R1_TOKENS[1])
QWQ = CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
PARTS = CHATML.replace("{{ m['content'] }}", "{% for p in m['content'] %}{{ p['text'] if p is mapping }}{% endfor %}")


def learnt(renderer: Renderer, answer: str) -> str:
    row = renderer.conversation([CONVERSATION[0], {"role": "assistant", "content": answer}])
    prompt = renderer.prompt_ids(CONVERSATION[:1])
    assert row.ids[: len(prompt)] == prompt
    return str(renderer.tokenizer.decode(row.ids[len(prompt) :], skip_special_tokens=False))


@pytest.mark.parametrize(
    ("tokenizer", "template", "end"), [(R1_LIKE, R1, R1_TOKENS[1]), (QWEN, QWQ, "<|im_end|>")], ids=["r1", "qwq"]
)
@pytest.mark.parametrize(
    ("answer", "goes_on"),
    [
        ("Fine.", "\n</think>\n\nFine."),
        ("<think>\nwell\n</think>\n\nFine.", "well\n</think>\n\nFine."),
        ("<think>well</think>Fine.", "well</think>Fine."),
        ("as it was sampled\n</think>\n\nFine.", "as it was sampled\n</think>\n\nFine."),
    ],
)
def test_an_answer_goes_on_in_the_think_block_that_the_generation_prompt_opens(
    tokenizer: Any, template: str, end: str, answer: str, goes_on: str
) -> None:
    assert learnt(Renderer(tokenizer, template), answer) == goes_on + end


def test_reasoning_that_never_ends_is_refused() -> None:
    with pytest.raises(DataError, match="never closes it"):
        Renderer(R1_LIKE, R1).conversation([CONVERSATION[0], {"role": "assistant", "content": "<think>well"}])


@pytest.mark.parametrize(
    ("tokenizer", "template", "bundled"),
    [
        (QWEN, QWEN3, "qwen3"),
        (QWEN, QWQ, "qwen3_thinking"),
        (R1_LIKE, R1, "deepseek_r1"),
        (byte_level(HARMONY_TOKENS, bos=None, eos="<|return|>"), GPT_OSS, "gpt_oss"),
    ],
    ids=["qwen3", "qwq", "r1", "gpt-oss"],
)
def test_several_turns_under_a_template_that_rewrites_them_name_the_bundled_one_that_does_not(
    tokenizer: Any, template: str, bundled: str
) -> None:
    with pytest.raises(
        DataError, match=rf"before message 3 otherwise once it follows.*bundled for these control tokens: {bundled}\)"
    ):
        Renderer(tokenizer, template).conversation(CONVERSATION)
    prompt = CONVERSATION[:1]
    own, other = (
        renderer.prompt_ids(prompt) for renderer in (Renderer(tokenizer, template), Renderer(tokenizer, read_template(bundled)))
    )
    assert other[-3:] == own[-3:]
    assert Renderer(tokenizer, read_template(bundled)).conversation(REASONED).n_targets > 0


def test_every_bundled_template_is_a_choice_by_name_and_jinja_and_files_still_are(tmp_path: Any) -> None:
    assert BUNDLED == ("deepseek_r1", "gpt_oss", "qwen3", "qwen3_thinking")
    assert ", ".join(BUNDLED) in str(BaseModelConfig.model_fields["chat_template"].description)
    (tmp_path / "own.jinja").write_text(CHATML)
    assert read_template(CHATML) == CHATML == read_template(str(tmp_path / "own.jinja"))
    with pytest.raises(ConfigError, match=r"'qwen'.*deepseek_r1, gpt_oss, qwen3"):
        read_template("qwen")


def test_a_generation_prompt_that_no_answer_is_rendered_behind_is_named() -> None:
    renderer = Renderer(QWEN, CHATML.replace("assistant\n{% endif", "assistant\nSure! {% endif"))
    with pytest.raises(DataError, match=r"the prompt has 'Sure! ' where the turn has 'Fine, thanks"):
        renderer.conversation(CONVERSATION)


def test_thinking_that_is_switched_off_and_given_all_the_same_is_refused() -> None:
    renderer = Renderer(QWEN, read_template("qwen3"), Rendering(chat_template_kwargs={"enable_thinking": False}))
    with pytest.raises(DataError, match=r"does not render message 1, .* behind the prompt that sampling is given.*well"):
        renderer.conversation(REASONED)


def test_an_error_of_python_in_a_template_is_one_of_the_settings() -> None:
    with pytest.raises(ConfigError, match=r"TypeError: can only concatenate str.*model\.chat_template"):
        Renderer(QWEN, "{% for m in messages %}{{ m['content'] + loop.index }}{% endfor %}")
    third = CHATML.replace("{{ m['content'] }}", "{{ m['content'] + (loop.index if loop.index > 2 else '') }}")
    with pytest.raises(ConfigError, match=r"roles user, assistant, user: TypeError"):
        Renderer(QWEN, third).conversation(CONVERSATION)


def test_contents_are_given_as_parts_to_a_template_that_asks_for_them() -> None:
    assert Renderer(QWEN, PARTS).conversation(CONVERSATION) == Renderer(QWEN, CHATML).conversation(CONVERSATION)


def test_a_template_that_leaves_contents_out_is_refused() -> None:
    with pytest.raises(ConfigError, match="renders the content of an answer as nothing"):
        Renderer(QWEN, CHATML.replace("{{ m['content'] }}", ""))


@pytest.mark.parametrize("clock", ["now()", "datetime.now()"])
def test_a_clock_that_transformers_does_not_give_is_refused(clock: str) -> None:
    with pytest.raises(ConfigError, match="is undefined"):
        Renderer(QWEN, "{{ " + clock + " }}" + CHATML)


@pytest.mark.parametrize(
    ("argument", "message"),
    [("enable_thinkin", "did you mean 'enable_thinking'"), ("foo", "does not read 'foo'"), ("messages", "set by the renderer")],
)
def test_an_argument_that_the_template_does_not_read_is_refused(argument: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"chat_template_kwargs.*{message}"):
        Renderer(QWEN, QWEN3, Rendering(chat_template_kwargs={argument: True}))


def test_the_date_changes_templates_that_ask_for_it_and_no_other() -> None:
    one, other = (Rendering(date=datetime.date(2026, 3, day)) for day in (1, 2))
    dated = "{{ strftime_now('%d %b %Y %H:%M') }}" + CHATML
    prompts = [QWEN.decode(Renderer(QWEN, dated, day).prompt_ids(CONVERSATION[:1])) for day in (one, other)]
    assert [text[:17] for text in prompts] == ["01 Mar 2026 00:00", "02 Mar 2026 00:00"]
    assert Renderer(QWEN, CHATML, one).conversation(CONVERSATION) == Renderer(QWEN, CHATML, other).conversation(CONVERSATION)
