"""Calls, tools, reasoning and weights reach the tokens, or the row is refused; control tokens that somebody typed stay text."""

from __future__ import annotations

from typing import Any

import pytest
from family_cases import IM_TOKENS, LLAMA_TOKENS, QWEN3, R1, R1_TOKENS, family_cases
from hypothesis import given, settings
from hypothesis import strategies as st
from template_cases import CHATML, CONVERSATION, Case, byte_level, cases, spans_of

from data_processing.errors import DataError
from rlhf_core.batching.chat_templates import read_template
from rlhf_core.batching.templates import Renderer

ALL_CASES = [*cases(), *family_cases()]
by_case = pytest.mark.parametrize("case", ALL_CASES, ids=lambda case: case.name)

QWEN = byte_level(IM_TOKENS, bos=None, eos="<|im_end|>")
LLAMA = byte_level([*LLAMA_TOKENS, "<|eom_id|>", "<|python_tag|>"], bos=LLAMA_TOKENS[0], eos="<|eot_id|>")
MISTRAL_TOKENS = ["<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]"]
MISTRAL = byte_level([*MISTRAL_TOKENS, "[TOOL_RESULTS]", "[/TOOL_RESULTS]"], bos="<s>", eos="</s>")

TOOLS = [{"type": "function", "function": {"name": "bin_of", "description": "Bin of an item"}}]
TOOLS_JSON = '{"type": "function", "function": {"name": "bin_of", "description": "Bin of an item"}}'
CALL = {"type": "function", "function": {"name": "bin_of", "arguments": {"item": "jar"}}}
CALLED = [
    {"role": "user", "content": "Which bin?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "green", "name": "bin_of"},
    {"role": "assistant", "content": "The green one."},
]

# Smaller than the originals; what is kept is where tools, calls and results stand.
LLAMA_CALLS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' and loop.first and tools %}"
    "<|start_header_id|>user<|end_header_id|>\n\nFunctions:\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}{{ m.content }}<|eot_id|>"
    "{% elif m.tool_calls %}<|start_header_id|>assistant<|end_header_id|>\n\n"
    '{"name": "{{ m.tool_calls[0].function.name }}", "parameters": {{ m.tool_calls[0].function.arguments | tojson }}}<|eot_id|>'
    "{% elif m.role == 'tool' %}<|start_header_id|>ipython<|end_header_id|>\n\n{{ m.content | tojson }}<|eot_id|>"
    "{% else %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content }}<|eot_id|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL_CALLS = (
    "{{ bos_token }}{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}{% for m in messages %}"
    "{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]{% elif m.role == 'tool' %}[TOOL_RESULTS]{{ m.content }}[/TOOL_RESULTS]"
    "{% elif m.tool_calls %}[TOOL_CALLS]{% for c in m.tool_calls %}{{ c.function | tojson }}{% endfor %}{{ eos_token }}"
    "{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
QWEN_PROMPT = (
    "<|im_start|>system\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with "
    f"function signatures within <tools></tools> XML tags:\n<tools>\n{TOOLS_JSON}\n</tools>\n\nFor each function call, return a "
    "json object with function name and arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n'
    "<|im_start|>user\nWhich bin?<|im_end|>\n<|im_start|>assistant\n"
)
QWEN_RESULT = "\n<|im_start|>user\n<tool_response>\ngreen\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
QWEN_CALL = '<tool_call>\n{"name": "bin_of", "arguments": {"item": "jar"}}\n</tool_call><|im_end|>'
LLAMA_ASKS = "<|start_header_id|>assistant<|end_header_id|>\n\n"
GOLDEN = {
    "qwen3": (
        QWEN,
        read_template("qwen3"),
        [
            (QWEN_PROMPT, False),
            ("<think>\n\n</think>\n\n" + QWEN_CALL, True),
            (QWEN_RESULT, False),
            ("<think>\n\n</think>\n\nThe green one.<|im_end|>", True),
        ],
    ),
    "qwen3_thinking": (
        QWEN,
        read_template("qwen3_thinking"),
        [
            (QWEN_PROMPT + "<think>\n", False),
            ("\n</think>\n\n" + QWEN_CALL, True),
            (QWEN_RESULT + "<think>\n", False),
            ("\n</think>\n\nThe green one.<|im_end|>", True),
        ],
    ),
    "llama": (
        LLAMA,
        LLAMA_CALLS,
        [
            (
                "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nFunctions:\n"
                f"{TOOLS_JSON}\nWhich bin?<|eot_id|>{LLAMA_ASKS}",
                False,
            ),
            ('{"name": "bin_of", "parameters": {"item": "jar"}}<|eot_id|>', True),
            (f'<|start_header_id|>ipython<|end_header_id|>\n\n"green"<|eot_id|>{LLAMA_ASKS}', False),
            ("The green one.<|eot_id|>", True),
        ],
    ),
    "mistral": (
        MISTRAL,
        MISTRAL_CALLS,
        [
            (f"<s>[AVAILABLE_TOOLS][{TOOLS_JSON}][/AVAILABLE_TOOLS][INST]Which bin?[/INST]", False),
            ('[TOOL_CALLS]{"name": "bin_of", "arguments": {"item": "jar"}}</s>', True),
            ("[TOOL_RESULTS]green[/TOOL_RESULTS]", False),
            ("The green one.</s>", True),
        ],
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_tools_calls_and_results_are_rendered_and_the_calls_are_learnt(name: str) -> None:
    tokenizer, template, spans = GOLDEN[name]
    renderer = Renderer(tokenizer, template)
    row = renderer.conversation(CALLED, TOOLS)
    assert spans_of(tokenizer, row.ids, row.is_target) == spans
    prompt = renderer.prompt_ids(CALLED[:3], TOOLS)
    assert prompt == row.ids[: len(prompt)]
    assert renderer.prompt_and_response(CALLED[:3], CALLED[3:], TOOLS).ids == row.ids


@pytest.mark.parametrize("name", GOLDEN)
def test_the_result_of_a_call_follows_the_sampled_call(name: str) -> None:
    tokenizer, template, _ = GOLDEN[name]
    renderer = Renderer(tokenizer, template)
    called = renderer.prompt_and_response(CALLED[:1], CALLED[1:2], TOOLS).ids
    assert [*called, *renderer.reply_ids(CALLED[:1], CALLED[1], CALLED[2:3], TOOLS)] == renderer.prompt_ids(CALLED[:3], TOOLS)


@pytest.mark.parametrize(
    ("messages", "tools", "reason"),
    [
        (CALLED, None, "does not render the tool calls of message 1"),
        (CALLED[:1] + CALLED[3:], TOOLS, "does not render tools"),
        (
            [CALLED[0], {**CALLED[3], "reasoning_content": "Jars are glass."}],
            None,
            "leaves out the reasoning of message 1 .assistant.*'Jars are glass.'",
        ),
    ],
)
def test_a_row_whose_template_ignores_what_it_holds_is_refused(messages: list[dict[str, Any]], tools: Any, reason: str) -> None:
    renderer = Renderer(QWEN, CHATML)
    with pytest.raises(DataError, match=reason):
        renderer.conversation(messages, tools)
    plain = [{"role": m["role"], "content": m["content"] or "-"} for m in messages]
    assert renderer.conversation(plain).n_targets > 0


def test_a_template_that_leaves_out_a_turn_or_one_of_two_calls_is_refused() -> None:
    without_system = CHATML.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}")
    system = {"role": "system", "content": "Be brief."}
    for ask in (Renderer(QWEN, without_system).conversation, Renderer(QWEN, without_system).prompt_ids):
        with pytest.raises(DataError, match=r"leaves out the content of message 0 \(system\)"):
            ask([system, *CONVERSATION[:2]])
    two = {**CALLED[1], "tool_calls": [CALL, {**CALL, "function": {"name": "bin_of", "arguments": {"item": "lid"}}}]}
    with pytest.raises(DataError, match=r"leaves out the tool call of message 1 .*'lid'"):
        Renderer(LLAMA, LLAMA_CALLS).conversation([CALLED[0], two, *CALLED[2:]], TOOLS)


REASONED = {"role": "assistant", "content": "Fine.", "reasoning_content": "well"}
THOUGHT = {"role": "assistant", "content": "<think>\nwell\n</think>\n\nFine."}
READS_KEY = CHATML.replace("{{ m['content'] }}", "{{ '(' + m.thinking + ') ' if m.thinking }}{{ m['content'] }}")


@pytest.mark.parametrize(
    ("tokenizer", "template"),
    [
        (QWEN, QWEN3),
        (QWEN, read_template("qwen3")),
        (QWEN, read_template("qwen3_thinking")),
        (byte_level(R1_TOKENS, bos=R1_TOKENS[0], eos=R1_TOKENS[1]), R1),
    ],
    ids=["qwen3", "bundled-qwen3", "bundled-qwen3-thinking", "r1"],
)
def test_reasoning_beside_an_answer_is_that_of_a_think_block(tokenizer: Any, template: str) -> None:
    renderer = Renderer(tokenizer, template)
    row = renderer.conversation([CONVERSATION[0], REASONED])
    assert row == renderer.conversation([CONVERSATION[0], THOUGHT])
    assert "well" in tokenizer.decode(row.ids)


def test_reasoning_is_given_under_the_name_that_a_template_reads() -> None:
    row = Renderer(QWEN, READS_KEY).conversation([CONVERSATION[0], REASONED])
    assert QWEN.decode(row.ids[row.prompt_length :]) == "(well) Fine.<|im_end|>"


def test_turns_of_weight_0_are_rendered_and_not_learnt() -> None:
    renderer = Renderer(QWEN, CHATML)
    whole = renderer.conversation(CONVERSATION)
    row = renderer.conversation([CONVERSATION[0], {**CONVERSATION[1], "weight": 0}, *CONVERSATION[2:]])
    assert row.ids == whole.ids
    learnt = [text for text, is_learnt in spans_of(QWEN, row.ids, row.is_target) if is_learnt]
    assert learnt == ["\nStill fine.<|im_end|>"]
    assert [text for text, is_learnt in spans_of(QWEN, whole.ids, whole.is_target) if is_learnt] == [
        "Fine, thanks.<|im_end|>",
        *learnt,
    ]


@pytest.mark.parametrize(
    ("tokenizer", "spans"),
    [
        (QWEN, [("O", False), ("nce upon a time.<|im_end|>", True)]),
        (
            byte_level(LLAMA_TOKENS, bos="<|begin_of_text|>", eos="<|end_of_text|>", adds_bos=True),
            [("<|begin_of_text|>", False), ("Once upon a time.<|end_of_text|>", True)],
        ),
    ],
    ids=["no-bos", "bos"],
)
def test_a_text_without_turns_is_learnt_as_it_is_between_bos_and_eos(tokenizer: Any, spans: list[tuple[str, bool]]) -> None:
    renderer = Renderer(tokenizer, CHATML.replace("<|im_end|>", tokenizer.eos_token))
    row = renderer.conversation([{"role": "text", "content": "Once upon a time."}])
    assert spans_of(tokenizer, row.ids, row.is_target) == spans
    ended = renderer.conversation([{"role": "text", "content": f"Once upon a time.{tokenizer.eos_token}"}])
    assert ended == row
    with pytest.raises(DataError, match=r"text without turns holds .*give the conversation in 'messages'"):
        renderer.conversation([{"role": "text", "content": f"a{tokenizer.eos_token}b"}])


def control_tokens(case: Case) -> list[str]:
    """The tokens of a template that somebody may type; <unk> and the bytes of a tokenizer are none."""
    added = [token.content for token in case.tokenizer.added_tokens_decoder.values() if token.special]
    return [token for token in added if not token.startswith("<0x") and token != "<unk>"]


@by_case
def test_control_tokens_that_somebody_typed_are_text_in_training_rollouts_and_evaluation(case: Case) -> None:
    renderer, tokenizer = case.renderer(), case.tokenizer
    control = {tokenizer.convert_tokens_to_ids(token) for token in control_tokens(case)}
    for token in control_tokens(case):
        plain, typed = (
            [{"role": "user", "content": f"What is {word}?"}, {"role": "assistant", "content": f"An {word} of x."}]
            for word in ("end", token)
        )
        rows = [renderer.conversation(messages) for messages in (plain, typed)]
        counts = [[i for i in row.ids if i in control] for row in rows]
        assert counts[0] == counts[1], token
        spelt = tokenizer.decode([i for i in rows[1].ids if i not in control])
        assert spelt.count(token) == 2, token
        assert renderer.prompt_ids(typed[:1]) == rows[1].ids[: rows[1].prompt_length]
        assert renderer.prompt_and_response(typed[:1], typed[1:]) == rows[1]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_whatever_is_typed_leaves_the_control_tokens_those_of_the_template(data: st.DataObject) -> None:
    case = data.draw(st.sampled_from([case for case in ALL_CASES if case.keeps_turns and not case.trims]))
    pieces = st.lists(st.sampled_from([*control_tokens(case), "<|", "|>", "a", " ", "\n", "é"]), max_size=5).map("".join)
    texts = [f"x{data.draw(pieces)}x" for _ in range(4)]
    roles = ("user", "assistant", "user", "assistant")
    typed = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
    bland = [{"role": role, "content": "x"} for role in roles]
    control = {case.tokenizer.convert_tokens_to_ids(token) for token in control_tokens(case)}
    rows = [case.renderer().conversation(messages) for messages in (typed, bland)]
    assert [i for i in rows[0].ids if i in control] == [i for i in rows[1].ids if i in control]


def test_a_typed_control_token_in_a_call_or_a_tool_is_text_too() -> None:
    call = {"type": "function", "function": {"name": "bin_of", "arguments": {"item": "<|im_end|>"}}}
    tool = {"type": "function", "function": {"name": "bin_of", "description": "Ends with <|im_end|>"}}
    renderer = Renderer(QWEN, read_template("qwen3"))
    typed = renderer.conversation([CALLED[0], {**CALLED[1], "tool_calls": [call]}, *CALLED[2:]], [tool])
    end = QWEN.convert_tokens_to_ids("<|im_end|>")
    assert typed.ids.count(end) == renderer.conversation(CALLED, TOOLS).ids.count(end)
    assert QWEN.decode([i for i in typed.ids if i != end]).count("<|im_end|>") == 2


def test_a_content_with_the_mark_itself_beside_a_control_token_is_refused() -> None:
    with pytest.raises(DataError, match=r"U\+FDD0"):
        Renderer(QWEN, CHATML).prompt_ids([{"role": "user", "content": "\ufdd0 <|im_end|>"}])
