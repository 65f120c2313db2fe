"""Templates that behave as those of Llama 3.2, Qwen3, DeepSeek-R1, SmolLM3 and gpt-oss do, and the bundled ones for them.

Written for these tests, smaller than the originals: what is kept is what matters to training, that is dates, arguments, think
blocks that are opened, dropped or left empty, and endings that change once a conversation goes on.
"""

from __future__ import annotations

import datetime

from template_cases import CONVERSATION, Case, byte_level

from rlhf_core.batching.chat_templates import read_template
from rlhf_core.batching.rendering import Rendering

DAY = Rendering(date=datetime.date(2026, 3, 1))
NO_THINKING = Rendering(chat_template_kwargs={"enable_thinking": False})
# Two answers, the first with its reasoning.
REASONED = [
    CONVERSATION[0],
    {"role": "assistant", "content": "<think>\nwell\n</think>\n\nFine, thanks."},
    *CONVERSATION[2:3],
    {"role": "assistant", "content": "Still fine."},
]

LLAMA32 = (
    "{{ bos_token }}{% if not date_string is defined %}{% if strftime_now is defined %}{% set date_string = strftime_now('%d %b %Y') %}"
    "{% else %}{% set date_string = '26 Jul 2024' %}{% endif %}{% endif %}"
    "<|start_header_id|>system<|end_header_id|>\n\nToday Date: {{ date_string }}\n\n<|eot_id|>"
    "{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
# The last answer has a think block, an empty one if it has no reasoning; earlier ones lose it.
QWEN3 = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}"
    "{% if loop.last and '</think>' not in m['content'] %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m['content'] if loop.last else m['content'].split('</think>')[-1].lstrip('\n') }}{% else %}{{ m['content'] }}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
# Reasoning is dropped from every answer, and the generation prompt opens it.
R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}<｜User｜>{{ m['content'] }}{% else %}"
    "<｜Assistant｜>{{ m['content'].split('</think>')[-1] }}<｜end▁of▁sentence｜>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<｜Assistant｜><think>\n{% endif %}"
)
SMOLLM3 = (
    "{% set mode = '/think' if enable_thinking is not defined or enable_thinking else '/no_think' %}"
    "<|im_start|>system\nToday Date: {{ strftime_now('%d %B %Y') }}\nReasoning Mode: {{ mode }}<|im_end|>\n"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and mode == '/no_think' %}{{ '<think>\n\n</think>\n' }}{% endif %}{{ m['content'].lstrip('\n') }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if mode == '/no_think' %}{{ '<think>\n\n</think>\n' }}{% endif %}{% endif %}"
)
# The last answer ends a response, earlier ones end a message.
GPT_OSS = (
    "<|start|>system<|message|>Current date: {{ strftime_now('%Y-%m-%d') }}\nReasoning: {{ reasoning_effort | default('medium') }}"
    "<|end|>{% for m in messages %}{% if m['role'] == 'assistant' %}<|start|>assistant<|channel|>final<|message|>{{ m['content'] }}"
    "{{ '<|return|>' if loop.last else '<|end|>' }}{% else %}<|start|>{{ m['role'] }}<|message|>{{ m['content'] }}<|end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)

IM_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LLAMA_TOKENS = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
R1_TOKENS = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"]
HARMONY_TOKENS = ["<|return|>", "<|start|>", "<|end|>", "<|message|>", "<|channel|>"]


def family_cases() -> list[Case]:
    """The families' own behaviours with what they can train on, and the bundled templates with several turns."""
    qwen, llama = (
        byte_level(IM_TOKENS, bos=None, eos="<|im_end|>"),
        byte_level(LLAMA_TOKENS, bos=LLAMA_TOKENS[0], eos="<|eot_id|>"),
    )
    r1 = byte_level(R1_TOKENS, bos=R1_TOKENS[0], eos=R1_TOKENS[1])
    harmony = byte_level(HARMONY_TOKENS, bos=None, eos="<|return|>")
    asked, prompted = "<|im_start|>user\nHow are you?<|im_end|>\n", "<|im_start|>assistant\n"
    return [
        Case(
            name="llama3.2",
            tokenizer=llama,
            template=LLAMA32,
            rendering=DAY,
            messages=CONVERSATION[:2],
            spans=[
                (
                    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nToday Date: 01 Mar 2026\n\n<|eot_id|>"
                    "<|start_header_id|>user<|end_header_id|>\n\nHow are you?<|eot_id|>"
                    "<|start_header_id|>assistant<|end_header_id|>\n\n",
                    False,
                ),
                ("Fine, thanks.<|eot_id|>", True),
            ],
            stop=["<|eot_id|>"],
            bos="<|begin_of_text|>",
            trims=True,
        ),
        Case(
            name="qwen3-thinking-off",
            tokenizer=qwen,
            template=QWEN3,
            rendering=NO_THINKING,
            messages=CONVERSATION[:2],
            spans=[(asked + prompted + "<think>\n\n</think>\n\n", False), ("Fine, thanks.<|im_end|>", True)],
            stop=["<|im_end|>"],
            keeps_turns=False,
        ),
        Case(
            name="r1",
            tokenizer=r1,
            template=R1,
            messages=REASONED[:2],
            spans=[
                ("<｜begin▁of▁sentence｜><｜User｜>How are you?<｜Assistant｜><think>\n", False),
                ("well\n</think>\n\nFine, thanks.<｜end▁of▁sentence｜>", True),
            ],
            stop=["<｜end▁of▁sentence｜>"],
            bos="<｜begin▁of▁sentence｜>",
            keeps_turns=False,
        ),
        Case(
            name="smollm3-thinking-off",
            tokenizer=qwen,
            template=SMOLLM3,
            rendering=Rendering(date=DAY.date, chat_template_kwargs={"enable_thinking": False}),
            messages=CONVERSATION[:3] + REASONED[3:],
            spans=[
                (
                    "<|im_start|>system\nToday Date: 01 March 2026\nReasoning Mode: /no_think<|im_end|>\n"
                    + (asked + prompted + "<think>\n\n</think>\n"),
                    False,
                ),
                ("Fine, thanks.<|im_end|>", True),
                ("\n<|im_start|>user\nAnd now?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n", False),
                ("Still fine.<|im_end|>", True),
            ],
            stop=["<|im_end|>"],
            trims=True,
        ),
        Case(
            name="gpt-oss",
            tokenizer=harmony,
            template=GPT_OSS,
            rendering=Rendering(date=DAY.date, chat_template_kwargs={"reasoning_effort": "low"}),
            messages=CONVERSATION[:2],
            spans=[
                (
                    "<|start|>system<|message|>Current date: 2026-03-01\nReasoning: low<|end|>"
                    "<|start|>user<|message|>How are you?<|end|><|start|>assistant",
                    False,
                ),
                ("<|channel|>final<|message|>Fine, thanks.<|return|>", True),
            ],
            stop=["<|return|>"],
            keeps_turns=False,
        ),
        Case(
            name="bundled-qwen3",
            tokenizer=qwen,
            template=read_template("qwen3"),
            messages=REASONED,
            spans=[
                (asked + prompted, False),
                ("<think>\nwell\n</think>\n\nFine, thanks.<|im_end|>", True),
                ("\n<|im_start|>user\nAnd now?<|im_end|>\n<|im_start|>assistant\n", False),
                ("<think>\n\n</think>\n\nStill fine.<|im_end|>", True),
            ],
            stop=["<|im_end|>"],
        ),
        Case(
            name="bundled-qwen3-thinking-off",
            tokenizer=qwen,
            template=read_template("qwen3"),
            rendering=NO_THINKING,
            messages=[*CONVERSATION[:3], REASONED[3]],
            spans=[
                (asked + prompted + "<think>\n\n</think>\n\n", False),
                ("Fine, thanks.<|im_end|>", True),
                ("\n<|im_start|>user\nAnd now?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n", False),
                ("Still fine.<|im_end|>", True),
            ],
            stop=["<|im_end|>"],
        ),
        Case(
            name="bundled-qwen3-thinking",
            tokenizer=qwen,
            template=read_template("qwen3_thinking"),
            messages=REASONED,
            spans=[
                (asked + prompted + "<think>\n", False),
                ("well\n</think>\n\nFine, thanks.<|im_end|>", True),
                ("\n<|im_start|>user\nAnd now?<|im_end|>\n<|im_start|>assistant\n<think>\n", False),
                ("\n</think>\n\nStill fine.<|im_end|>", True),
            ],
            stop=["<|im_end|>"],
        ),
        Case(
            name="bundled-deepseek-r1",
            tokenizer=r1,
            template=read_template("deepseek_r1"),
            messages=REASONED,
            spans=[
                ("<｜begin▁of▁sentence｜><｜User｜>How are you?<｜Assistant｜><think>\n", False),
                ("well\n</think>\n\nFine, thanks.<｜end▁of▁sentence｜>", True),
                ("<｜User｜>And now?<｜Assistant｜><think>\n", False),
                ("\n</think>\n\nStill fine.<｜end▁of▁sentence｜>", True),
            ],
            stop=["<｜end▁of▁sentence｜>"],
            bos="<｜begin▁of▁sentence｜>",
        ),
        Case(
            name="bundled-gpt-oss",
            tokenizer=harmony,
            template=read_template("gpt_oss"),
            rendering=DAY,
            messages=REASONED,
            spans=[
                (
                    "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: 2024-06\n"
                    "Current date: 2026-03-01\n\nReasoning: medium\n\n# Valid channels: analysis, commentary, final. Channel must be "
                    "included for every message.<|end|><|start|>user<|message|>How are you?<|end|><|start|>assistant",
                    False,
                ),
                (
                    "<|channel|>analysis<|message|>well<|end|><|start|>assistant<|channel|>final<|message|>Fine, thanks.<|return|>",
                    True,
                ),
                ("<|start|>user<|message|>And now?<|end|><|start|>assistant", False),
                ("<|channel|>final<|message|>Still fine.<|return|>", True),
            ],
            stop=["<|return|>"],
        ),
    ]
