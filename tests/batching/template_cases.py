"""Six chat templates as models have them, each with a small tokenizer of the same make, and what must come of them.

`spans` is the golden result for `CONVERSATION`: pieces of the rendering in order, each with whether it is learnt. In the
tokens of the SentencePiece-like tokenizers a space stands where the tokenizer puts one, not only where the text has it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from rlhf_core.batching.rendering import Rendering
from rlhf_core.batching.templates import Renderer

CONVERSATION = [
    {"role": "user", "content": "How are you?"},
    {"role": "assistant", "content": "Fine, thanks."},
    {"role": "user", "content": "And now?"},
    {"role": "assistant", "content": "\nStill fine."},
]
CORPUS = [
    "How are you? Fine, thanks. And now?\n\nStill fine. user assistant model User:\n Assistant:\n [INST] [/INST] think"
] * 20

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
# The last answer carries its reasoning (an empty block if it has none), earlier ones lose it.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}"
    "{% if loop.last and '</think>' not in m['content'] %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m['content'] if loop.last else m['content'].split('</think>')[-1] }}{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Case:
    """A template with its tokenizer. `spans` are those of `messages`; `stop` and `bos` are token strings.

    `keeps_turns`: a turn renders alike whatever follows. `trims`: white space around contents is not rendered.
    """

    name: str
    tokenizer: PreTrainedTokenizerFast
    template: str | None
    messages: list[dict[str, str]]
    spans: list[tuple[str, bool]]
    stop: list[str]
    bos: str | None = None
    rendering: Rendering = field(default_factory=Rendering)
    keeps_turns: bool = True
    trims: bool = False

    def renderer(self) -> Renderer:
        """The renderer under test."""
        return Renderer(self.tokenizer, self.template, self.rendering)


def byte_level(special: list[str], *, bos: str | None, eos: str, adds_bos: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE (GPT-2, Llama 3, Qwen); pad = eos."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    return _fast(tokenizer, trainer, special, bos, eos, adds_bos=adds_bos)


def sentence_piece(special: list[str], *, bos: str, eos: str, prepends_space: bool) -> PreTrainedTokenizerFast:
    """BPE over text whose spaces are written ▁ (Gemma; Mistral, which also puts one in front); insists on a BOS."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    spaces = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prepends_space else spaces
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    alphabet = [chr(code) for code in range(33, 127)] + ["\n", "▁"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<unk>", *special, *(f"<0x{byte:02X}>" for byte in range(256))],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    return _fast(tokenizer, trainer, special, bos, eos, adds_bos=True)


def _fast(
    tokenizer: Tokenizer, trainer: trainers.BpeTrainer, special: list[str], bos: str | None, eos: str, *, adds_bos: bool
) -> PreTrainedTokenizerFast:
    tokenizer.train_from_iterator(CORPUS, trainer)
    if adds_bos and bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    extra = [token for token in special if token not in (bos, eos)]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token=eos, extra_special_tokens=extra
    )


def cases() -> list[Case]:
    """The six, each trained anew in milliseconds."""
    im_tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return [
        Case(
            name="chatml",
            tokenizer=byte_level(im_tokens, bos=None, eos="<|im_end|>"),
            template=CHATML,
            messages=CONVERSATION,
            spans=[
                ("<|im_start|>user\nHow are you?<|im_end|>\n<|im_start|>assistant\n", False),
                ("Fine, thanks.<|im_end|>", True),
                ("\n<|im_start|>user\nAnd now?<|im_end|>\n<|im_start|>assistant\n", False),
                ("\nStill fine.<|im_end|>", True),
            ],
            stop=["<|im_end|>"],
        ),
        Case(
            name="llama3",
            tokenizer=byte_level(
                ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
                bos="<|begin_of_text|>",
                eos="<|end_of_text|>",
                adds_bos=True,
            ),
            template=LLAMA3,
            messages=CONVERSATION,
            spans=[
                (
                    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHow are you?<|eot_id|>"
                    "<|start_header_id|>assistant<|end_header_id|>\n\n",
                    False,
                ),
                ("Fine, thanks.<|eot_id|>", True),
                (
                    "<|start_header_id|>user<|end_header_id|>\n\nAnd now?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
                    False,
                ),
                ("\nStill fine.<|eot_id|>", True),
            ],
            stop=["<|eot_id|>", "<|end_of_text|>"],
            bos="<|begin_of_text|>",
        ),
        Case(
            name="gemma",
            tokenizer=sentence_piece(
                ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"], bos="<bos>", eos="<eos>", prepends_space=False
            ),
            template=GEMMA,
            messages=CONVERSATION,
            spans=[
                ("<bos><start_of_turn>user\nHow are you?<end_of_turn>\n<start_of_turn>model\n", False),
                ("Fine, thanks.<end_of_turn>", True),
                ("\n<start_of_turn>user\nAnd now?<end_of_turn>\n<start_of_turn>model\n", False),
                ("\nStill fine.<end_of_turn>", True),
            ],
            stop=["<end_of_turn>", "<eos>"],
            bos="<bos>",
        ),
        Case(
            name="mistral",
            tokenizer=sentence_piece(["<s>", "</s>"], bos="<s>", eos="</s>", prepends_space=True),
            template=MISTRAL,
            messages=CONVERSATION,
            spans=[
                ("<s> [INST] How are you? [/INST]", False),
                (" Fine, thanks.</s>", True),
                (" [INST] And now? [/INST]", False),
                (" \nStill fine.</s>", True),
            ],
            stop=["</s>"],
            bos="<s>",
        ),
        Case(
            name="thinking",
            tokenizer=byte_level(im_tokens, bos=None, eos="<|im_end|>"),
            template=THINKING,
            messages=CONVERSATION[:2],
            spans=[
                ("<|im_start|>user\nHow are you?<|im_end|>\n<|im_start|>assistant\n", False),
                ("<think>\n\n</think>\n\nFine, thanks.<|im_end|>", True),
            ],
            stop=["<|im_end|>"],
            keeps_turns=False,
        ),
        Case(
            name="plain",
            tokenizer=byte_level(["<|endoftext|>"], bos="<|endoftext|>", eos="<|endoftext|>"),
            template=None,
            messages=CONVERSATION,
            spans=[
                ("User:\nHow are you?\n\nAssistant:\n", False),
                ("Fine, thanks.<|endoftext|>", True),
                ("\n\nUser:\nAnd now?\n\nAssistant:\n", False),
                ("\nStill fine.<|endoftext|>", True),
            ],
            stop=["<|endoftext|>"],
        ),
    ]


def spans_of(tokenizer: PreTrainedTokenizerFast, ids: list[int], is_target: list[bool]) -> list[tuple[str, bool]]:
    """Runs of tokens with the same mask, as text: the tokens' own spelling, joined."""
    spans: list[tuple[list[int], bool]] = []
    for token, learnt in zip(ids, is_target, strict=True):
        if not spans or spans[-1][1] != learnt:
            spans.append(([], learnt))
        spans[-1][0].append(token)
    return [
        (tokenizer.decode(run, skip_special_tokens=False, clean_up_tokenization_spaces=False), learnt) for run, learnt in spans
    ]
