"""Any sequence classifier as a reward: what it reads, which output counts, and that batches change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from data_processing.errors import ConfigError
from flows.graph.build import build_graph
from flows.settings.presets import resolve
from rlhf_core.rewards.base import ScoredResponse, Scores
from rlhf_core.rewards.build import Around, build_scorer
from rlhf_core.settings.rewards.models import ClassifierReward
from rlhf_core.settings.training import EngineSettings
from tasks.online import STAGE
from tests.tiny_models import tiny_tokenizer

pytestmark = pytest.mark.seconds
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    *["what", "is", "it", "a", "good", "bad", "nice", "awful", "thing", "really", "so", "very", "?"],
]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three outputs, pairs told apart by token types, 24 positions."""
    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    names = {0: "harmless", 1: "rude", 2: "toxic"}
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=24, initializer_range=0.3, id2label=names, label2id={name: i for i, name in names.items()},
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One output, and a chat template of its own."""
    folder, tokenizer = tmp_path_factory.mktemp("chat"), tiny_tokenizer("llama")
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, max_position_embeddings=128, initializer_range=0.3, num_labels=1, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def responses(*texts: str, question: str = "what is it ?") -> list[ScoredResponse]:
    prompt = [{"role": "user", "content": question}]
    return [ScoredResponse(f"p{i}", prompt, None, [1], [2], text) for i, text in enumerate(texts)]


def scored(folder: Path, given: list[ScoredResponse], tokens: int = 64, **settings: Any) -> Scores:
    around = Around(Path("unused"), EngineSettings(dtype="fp32", micro_batch_tokens=tokens))
    return Scores.of(build_scorer(ClassifierReward(path=str(folder), **settings), around).score(given))


TEXTS = ("a good thing", "awful", "so very very nice", "a bad bad bad thing really")


@pytest.mark.parametrize("reads", ["pair", "response"])
@pytest.mark.parametrize("output", ["logit", "probability"])
def test_the_named_output_of_what_it_reads_counts(bert: Path, reads: str, output: str) -> None:
    tokenizer = BertTokenizerFast.from_pretrained(bert)
    model: Any = AutoModelForSequenceClassification.from_pretrained(bert).eval()
    found = scored(bert, responses(*TEXTS), reads=reads, label="toxic", output=output)
    for text, value in zip(TEXTS, found.rewards, strict=True):
        parts = ("what is it ?", text) if reads == "pair" else (text,)
        with torch.no_grad():
            logits = model(**tokenizer(*parts, return_tensors="pt")).logits[0]
        assert value == pytest.approx(float(logits[2] if output == "logit" else logits.softmax(-1)[2]), abs=1e-5)
    assert scored(bert, responses(*TEXTS), reads=reads, label=2, output=output) == found


def test_how_texts_are_batched_changes_nothing(bert: Path) -> None:
    given = responses(*TEXTS, *reversed(TEXTS))
    alone, together = (scored(bert, given, tokens, reads="pair", label="rude").rewards for tokens in (16, 4096))
    assert alone == pytest.approx(together, abs=1e-5)


def test_a_chat_is_read_under_the_classifiers_own_template(chat: Path) -> None:
    tokenizer = tiny_tokenizer("llama")
    model: Any = AutoModelForSequenceClassification.from_pretrained(chat).eval()
    found = scored(chat, responses("It is so.", "No."))
    for text, value in zip(("It is so.", "No."), found.rewards, strict=True):
        turns = [{"role": "user", "content": "what is it ?"}, {"role": "assistant", "content": text}]
        ids = tokenizer(tokenizer.apply_chat_template(turns, tokenize=False), add_special_tokens=False, return_tensors="pt")
        with torch.no_grad():
            assert value == pytest.approx(float(model(**ids).logits[0, 0]), abs=1e-5)
    chances = scored(chat, responses("It is so."), output="probability").rewards
    assert chances == pytest.approx([torch.tensor(found.rewards[0]).sigmoid().item()], abs=1e-5)


def test_what_is_too_long_is_invalid_alone(bert: Path) -> None:
    found = scored(bert, responses("a good thing", "very " * 40), reads="response", label=0)
    assert found.rewards[0] == found.rewards[0] and found.rewards[1] != found.rewards[1]
    assert found.failures == [None, "has 42 tokens, and the classifier reads 24"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"reads": "pair"}, r"label=None is no output.*it has 0: harmless, 1: rude, 2: toxic"),
        ({"reads": "pair", "label": "toxik"}, r"label='toxik' is no output.*did you mean 'toxic'"),
        ({"label": 0}, "has no chat template; use reads: pair"),
    ],
)
def test_what_it_cannot_give_is_refused(bert: Path, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        scored(bert, responses("a"), **settings)


def test_a_folder_without_a_classifier_is_refused(tmp_path: Path, chat: Path) -> None:
    with pytest.raises(ConfigError, match="holds no sequence classifier"):
        scored(tmp_path, responses("a"))
    bare = tmp_path / "bare"
    model: Any = LlamaForSequenceClassification.from_pretrained(chat)
    model.model.save_pretrained(bare)
    tiny_tokenizer("llama").save_pretrained(bare)
    with pytest.raises(ConfigError, match="lacks the weights"):
        scored(bare, responses("a"))


def test_what_the_folder_holds_is_in_the_key(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNFLOW_HOME", str(tmp_path / "home"))
    settings = {"online.rewards": [{"kind": "classifier", "path": str(bert), "reads": "pair", "label": "toxic"}]}
    config: Any = build_graph(resolve("tiny", overrides=settings))["online"].settings
    assert STAGE.fingerprint is not None
    [files] = STAGE.fingerprint(config)
    assert {"config.json", "model.safetensors"} <= set(files)
    with pytest.raises(ConfigError, match="is no model folder"):
        STAGE.fingerprint(config.model_copy(update={"rewards": [ClassifierReward(path=str(tmp_path / "none"))]}))
