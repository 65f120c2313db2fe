"""Chat templates put together at random, and conversations under them: all that is said is rendered, or it is refused."""

from __future__ import annotations

import json
import random
from functools import cache, partial
from pathlib import Path
from typing import Any

from rlhf_core.batching.abilities import refusals
from rlhf_core.batching.chat_templates import BUNDLED, read_template
from rlhf_core.batching.rendering import Rendering
from rlhf_core.batching.templates import Renderer
from tests.batching.template_cases import byte_level, sentence_piece
from tests.fuzz.outcome import Finding, outcome
from tests.fuzz.values import text, value

HEADS = (
    "", "", "", "{{ bos_token }}", "{{ bos_token }}{{ bos_token }}", "{% set messages = messages[1:] %}", "{{ nothing.x }}", "{{ raise_exception('no') }}",
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}", "{{ strftime_now('%d %b %Y') }}", "{{ now() }}",
    "{% if tools %}{{ tools | tojson }}{% endif %}", "{% for t in tools %}{{ t.function.name }}{% endfor %}", "{{ 1 / 0 }}", "{{ messages }}",
    "{% if messages | length > 2 %}{{ raise_exception('too long') }}{% endif %}", "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
)  # fmt: skip
CONTENTS = (
    "m['content']", "m['content']", "m['content']", "m.content", "m.content | trim", "m.content | upper", "m.content[:5]", "m.content + 1", "m.text",
    "m.content.split('</think>')[-1]", "m.content if loop.last else ''", "m.content | tojson", "m.content | e", "m.content[0].text", "loop.index",
    "m.content | replace('e', '')", "m.content.lstrip('\n')", "(m.reasoning_content or '') + m.content", "m.content * 2", "m['content'] | length",
)  # fmt: skip
HEADINGS = (
    "<|im_start|>{{ m['role'] }}\n",
    "{{ m.role }}: ",
    "[{{ m.role }}]",
    "",
    "{% if m.role == 'user' %}[INST] {% endif %}",
    "{{ m.role | upper }}\n",
)
ENDS = (
    "<|im_end|>\n",
    "<|im_end|>",
    "{{ eos_token }}",
    "",
    "\n",
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}",
    "{{ eos_token if loop.last }}",
)
OPENINGS = (
    "<|im_start|>assistant\n",
    "assistant: ",
    "",
    "<|im_start|>assistant\n<think>\n",
    "<think>",
    "[assistant]",
    "Sure! ",
    "<|im_start|>assistant\n<think>\n\n</think>\n\n",
)
LOOPS = (
    "messages",
    "messages",
    "messages",
    "messages | reverse",
    "messages if m.role != 'system'",
    "messages[:1]",
    "messages[-1:]",
    "message",
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def attempt(rng: random.Random, folder: Path) -> None:
    """Render conversations under one template."""
    tokenizer = rng.choice(_tokenizers())
    template = _template(rng)
    arguments = {rng.choice(("enable_thinking", "m", "messages", "x")): rng.choice((True, 0, "a"))} if rng.random() < 0.1 else {}
    names = ["chat_template", "chat template", "tokenizer"]
    made: list[Renderer] = []
    outcome(lambda: made.append(Renderer(tokenizer, template, Rendering(chat_template_kwargs=arguments))), names)
    for renderer in made:
        refusals(renderer._text)
        for _ in range(3):
            tools = [{"type": "function", "function": {"name": "bin_of"}}] if rng.random() < 0.15 else None
            outcome(partial(_check, renderer, _conversation(rng), tools), [*names, "turn", "message", "content", "text"])


def _check(renderer: Renderer, messages: list[dict[str, Any]], tools: Any) -> None:
    decode = renderer.tokenizer.decode
    row = renderer.conversation(messages, tools)
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    shown = _words(decode(row.ids))
    for message in messages[: answers[-1] + 1 if answers else None]:
        _, _, said = message["content"].rpartition("</think>")
        in_json = _words(json.dumps(said, ensure_ascii=False)[1:-1])  # as a template with `tojson` has it
        if (piece := _words(said)) not in shown and in_json not in shown and "<unk>" not in shown:
            raise Finding(f"{piece!r} is not in {shown!r}")
    if answers and messages[answers[-1]].get("weight") != 0 and not row.n_targets:
        raise Finding(f"nothing is learnt from {messages}")
    if answers and row.ids[-1] not in renderer.stop_ids:
        raise Finding(f"an answer does not end with one of {renderer.stop_ids}: {row.ids[-5:]}")
    if answers:
        *before, _ = messages[: answers[-1] + 1]
        behind = renderer.prompt_and_response(before, messages[answers[-1] : answers[-1] + 1], tools)
        prompt = renderer.prompt_ids(before, tools)
        if behind.ids[: len(prompt)] != prompt:
            raise Finding("training sees another prompt than sampling")


def _words(said: str) -> str:
    return "".join(said.split()).replace("\ufffd", "")


def _conversation(rng: random.Random) -> list[dict[str, Any]]:
    roles = [*(["system"] if rng.random() < 0.2 else []), *("user", "assistant") * rng.choice((1, 1, 1, 2, 3))]
    if rng.random() < 0.15:
        rng.shuffle(roles)
    messages: list[dict[str, Any]] = [{"role": role, "content": f"{_valid(text(rng))} {i}"} for i, role in enumerate(roles)]
    if rng.random() < 0.15:
        messages[-1]["reasoning_content"] = _valid(text(rng)) or "well"
    if rng.random() < 0.1:
        messages[-1]["weight"] = 0
    if rng.random() < 0.1 and roles[-1] == "assistant":
        function = {
            "name": "bin_of",
            "arguments": {"item": _valid(text(rng)), "more": rng.choice((1, None, [value(rng)], {"a": {"b": 1}}))},
        }
        messages[-1]["tool_calls"] = [{"type": "function", "function": function}]
    return messages


def _valid(said: str) -> str:
    """As tables hold it: text that is valid Unicode."""
    return said.encode("utf-8", "replace").decode()


def _template(rng: random.Random) -> str:
    if rng.random() < 0.1:
        return read_template(rng.choice(BUNDLED))
    body = rng.choice(HEADINGS) + "{{ " + rng.choice(CONTENTS) + " }}" + rng.choice(ENDS)
    opening = "{% if add_generation_prompt %}" + rng.choice(OPENINGS) + "{% endif %}"
    template = (
        rng.choice(HEADS)
        + "{% for m in "
        + rng.choice(LOOPS)
        + " %}"
        + body
        + "{% endfor %}"
        + rng.choice((opening, opening, opening, ""))
    )
    for _ in range(rng.choice((0, 0, 0, 1, 2))):
        place = rng.randrange(len(template) + 1)
        cut = template[place + rng.choice((0, 1, 1, 4, 20)) :]
        template = (
            template[:place] + rng.choice(("", "", "{", "}}", "%}", "{% if x %}", "'", "é", "{{ eos_token }}", text(rng))) + cut
        )
    return template


@cache
def _tokenizers() -> tuple[Any, ...]:
    return (
        byte_level(SPECIAL, bos=None, eos="<|im_end|>"),
        byte_level(SPECIAL, bos="<|endoftext|>", eos="<|endoftext|>", adds_bos=True),
        sentence_piece(["<s>", "</s>", *SPECIAL], bos="<s>", eos="</s>", prepends_space=True),
    )
