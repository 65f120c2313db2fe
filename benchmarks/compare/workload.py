"""What both arms are given: one weights file with its tokenizer, and the same tokenised rows in the same order.

The tokenizer has one token a word, so a row's length in words is its length in tokens but for the template's own. Our
recipes read tables in their own seeded order: rows are put where that order reaches them when they are wanted.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_processing.schemas import to_table, write_table
from rlhf_core.batching.balance import order
from rlhf_core.batching.templates import Renderer
from rlhf_core.models.load import load_tokenizer

SPECIAL = ("<|pad|>", "<|unknown|>", "<|user|>", "<|assistant|>", "<|end|>")
TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|> ' + message['content'] }}"
    "{{ ' <|end|> ' if message['role'] == 'assistant' else ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SEED = 20

Words = list[str]


@dataclass(frozen=True)
class Shape:
    """A Llama shape; the default has 15.5 million parameters, four fifths of them in the tied embedding."""

    vocabulary: int = 49_152
    layers: int = 4
    hidden: int = 256
    heads: int = 4
    key_value_heads: int = 2
    intermediate: int = 688
    positions: int = 8192


@dataclass(frozen=True)
class Lengths:
    """Row lengths in words: lognormal, mean and sigma of the logarithm, clipped."""

    mean_log: float = 4.2
    sigma_log: float = 0.9
    low: int = 8
    high: int = 400

    def draw(self, generator: random.Random) -> int:
        """One length."""
        return min(max(round(generator.lognormvariate(self.mean_log, self.sigma_log)), self.low), self.high)


def write_model(folder: Path, shape: Shape, seed: int = SEED) -> None:
    """Seeded random weights (fp32), config and tokenizer, in Hugging Face layout."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _tokenizer(shape)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        max_position_embeddings=shape.positions,
        tie_word_embeddings=True,
        # Wider than usual, so that log-probs differ clearly from token to token and a wrong token shows in the loss.
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _tokenizer(shape: Shape) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*SPECIAL, *(f"w{i}" for i in range(shape.vocabulary - len(SPECIAL)))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=SPECIAL[1]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIAL[0],
        unk_token=SPECIAL[1],
        eos_token=SPECIAL[4],
        additional_special_tokens=list(SPECIAL[2:4]),
        model_max_length=shape.positions,
    )
    fast.chat_template = TEMPLATE
    return fast


@dataclass(frozen=True)
class Work:
    """The folder both arms read: `model/`, `data/` (our tables) and `peer.json` (the same rows, tokenised, in order)."""

    folder: Path

    @property
    def model(self) -> Path:
        """Hugging Face folder."""
        return self.folder / "model"

    @property
    def teacher(self) -> Path:
        """Another Hugging Face folder with the same tokens, as large."""
        return self.folder / "teacher"

    @property
    def data(self) -> Path:
        """Prepared data folder of our recipes."""
        return self.folder / "data"

    def write(self, table: str, shape: Shape, steps: Sequence[Sequence[dict[str, Any]]], seed: int) -> None:
        """Model and rows; `steps[s]` are the rows of step s + 1, of table sft, preference or prompts."""
        write_model(self.model, shape)
        write_model(self.teacher, shape, SEED + 1)
        rows = [row for step in steps for row in step]
        placed = [row for _, row in sorted(zip(order(len(rows), seed, 0), rows, strict=True), key=lambda pair: pair[0])]
        path = self.data / table / "train.parquet"
        write_table(table, to_table(table, placed), path)  # type: ignore[arg-type]
        renderer = Renderer(load_tokenizer(self.model))
        peer = [[_for_peer(renderer, row) for row in step] for step in steps]
        (self.folder / "peer.json").write_text(json.dumps({"shape": asdict(shape), "steps": peer}))

    def steps(self) -> list[list[dict[str, Any]]]:
        """Rows as the peer sees them, a list a step."""
        loaded: list[list[dict[str, Any]]] = json.loads((self.folder / "peer.json").read_text())["steps"]
        return loaded


def _for_peer(renderer: Renderer, row: dict[str, Any]) -> dict[str, Any]:
    """Token ids as our renderer makes them, beside the messages for trainers that only tokenise themselves."""
    if "messages" in row:
        tokens = renderer.conversation(row["messages"])
        labels = [i if target else -100 for i, target in zip(tokens.ids, tokens.is_target, strict=True)]
        return {"messages": row["messages"], "input_ids": tokens.ids, "labels": labels, "tokens": len(tokens)}
    if "chosen" in row:
        chosen, rejected = (renderer.prompt_and_response(row["prompt"], row[name]) for name in ("chosen", "rejected"))
        messages = {name: row[name] for name in ("prompt", "chosen", "rejected")}
        return {**messages, "chosen_ids": chosen.ids, "rejected_ids": rejected.ids, "tokens": len(chosen) + len(rejected)}
    if "response" in row:
        answer = renderer.prompt_and_response(row["prompt"], row["response"])
        told = {"prompt": row["prompt"], "completion": row["response"], "label": row["desirable"]}
        return {**told, "tokens": len(answer)}
    prompt_ids = renderer.prompt_ids(row["prompt"])
    return {"prompt": row["prompt"], "prompt_ids": prompt_ids, "tokens": len(prompt_ids)}


class RowMaker:
    """Seeded rows of each table, made of random words."""

    def __init__(self, shape: Shape, seed: int = SEED) -> None:
        self._random = random.Random(seed)
        self._words = shape.vocabulary - len(SPECIAL)
        self._count = 0

    def sft(self, n_words: int) -> dict[str, Any]:
        """A one-word question and an answer of `n_words`."""
        return {"id": self._id(), "messages": [self._user(1), *self._assistant(n_words)]}

    def pair(self, prompt_words: int, chosen_words: int, rejected_words: int) -> dict[str, Any]:
        """A prompt with two answers."""
        answers = {"chosen": self._assistant(chosen_words), "rejected": self._assistant(rejected_words)}
        return {"id": self._id(), "prompt": [self._user(prompt_words)], **answers, "margin": None, "detail": None}

    def judged(self, prompt_words: int, answer_words: int, *, desirable: bool) -> dict[str, Any]:
        """A prompt with one answer, good or bad."""
        answer = self._assistant(answer_words)
        return {"id": self._id(), "prompt": [self._user(prompt_words)], "response": answer, "desirable": desirable}

    def prompt(self, n_words: int) -> dict[str, Any]:
        """A prompt to sample from."""
        return {"id": self._id(), "prompt": [self._user(n_words)], "label": None, "source": "benchmark"}

    def drawn(self, lengths: Lengths) -> Iterator[int]:
        """Row lengths without end."""
        while True:
            yield lengths.draw(self._random)

    def _id(self) -> str:
        self._count += 1
        return f"row{self._count}"

    def _user(self, n_words: int) -> dict[str, str]:
        return {"role": "user", "content": self._text(n_words)}

    def _assistant(self, n_words: int) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": self._text(n_words)}]

    def _text(self, n_words: int) -> str:
        return " ".join(f"w{self._random.randrange(self._words)}" for _ in range(n_words))


def own_mib(model: Path) -> float:
    """The model's own memory in fp32 training, MiB: weights, gradients and AdamW's two moments."""
    weights = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    return 4 * weights / 2**20
