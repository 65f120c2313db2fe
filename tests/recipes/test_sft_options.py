"""What SFT learns from a conversation or a text, what each token counts, and noise that no cut of a batch changes."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from data_processing.errors import DataError
from rlhf_core.batching.collate import collate
from rlhf_core.batching.rows import TokenRow
from rlhf_core.batching.templates import Renderer
from rlhf_core.models.embedding_noise import EmbeddingNoise
from rlhf_core.models.load import load_tokenizer
from rlhf_core.recipes.examples import Example, conversation, digest, windows
from rlhf_core.recipes.sft import train_sft
from rlhf_core.settings.supervised import SftConfig
from rlhf_core.settings.training import OptimizerSettings
from tests.recipes.gradients import gradients_of
from tests.recipes.small_jobs import FULL, curve, engine, job, sft_config, sft_row, summary, weighted_row, write_sft
from tests.tiny_models import CHATML, Architecture, tiny_tokenizer

Models = dict[Architecture, Path]
LAYOUTS: dict[str, dict[str, Any]] = {
    "whole": {"micro_batch_tokens": 4096},
    "cut": {"micro_batch_tokens": 16},
    "padded": {"micro_batch_tokens": 4096, "packing": "off"},
}


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(tiny_tokenizer("llama"))


def learnt(renderer: Renderer, row: TokenRow) -> str:
    return str(renderer.tokenizer.decode([i for i, is_target in zip(row.ids, row.is_target, strict=True) if is_target]))


def test_all_turns_are_learnt_or_the_last_only(renderer: Renderer) -> None:
    row = {"id": "r", "messages": [*sft_row(0)["messages"], *sft_row(1)["messages"], sft_row(2)["messages"][0]]}
    whole, last = (conversation(renderer, row, last_only=only).rows[0] for only in (False, True))
    assert whole.ids == last.ids
    assert learnt(renderer, whole) == "the answer is yes<|im_end|>no<|im_end|>"
    assert learnt(renderer, last) == "no<|im_end|>"


def test_the_last_turn_is_the_last_with_a_weight(renderer: Renderer) -> None:
    turns = [*sft_row(0)["messages"], *sft_row(1)["messages"]]
    row = {"id": "r", "messages": [*turns[:-1], {**turns[-1], "weight": 0}]}
    assert learnt(renderer, conversation(renderer, row, last_only=True).rows[0]) == "the answer is yes<|im_end|>"


def test_a_template_that_drops_earlier_reasoning_can_learn_the_last_turn() -> None:
    drops = CHATML.replace("+ message['content']", "+ (message['content'] if loop.last else message['content'].split('|')[-1])")
    renderer = Renderer(tiny_tokenizer("llama"), drops)
    row = {"id": "r", "messages": [*sft_row(0)["messages"], *sft_row(1)["messages"]]}
    row["messages"][1] = {"role": "assistant", "content": "hm|yes"}
    with pytest.raises(DataError):
        conversation(renderer, row)
    row["messages"][1] = {"role": "assistant", "content": "yes"}
    assert learnt(renderer, conversation(renderer, row, last_only=True).rows[0]) == "no<|im_end|>"


def test_the_loss_is_the_mean_over_the_sum_of_weights(models: Models, tmp_path: Path) -> None:
    rows = [weighted_row(number) for number in range(6)]
    run = job(sft_config(batch_size=6, max_steps=1, lora=FULL), models["llama"], write_sft(tmp_path / "data", rows), tmp_path)
    train_sft(run)
    renderer = Renderer(load_tokenizer(models["llama"]))
    model = AutoModelForCausalLM.from_pretrained(models["llama"], dtype=torch.float32).eval()
    total, weight = 0.0, 0.0
    for row in rows:
        turns = row["messages"]
        for end in (2, 4):
            tokens = renderer.prompt_and_response(turns[: end - 1], [turns[end - 1]])
            logprobs = model(torch.tensor([tokens.ids])).logits[0, :-1].float().log_softmax(-1)
            nll = -logprobs.gather(-1, torch.tensor(tokens.ids[1:])[:, None])[torch.tensor(tokens.is_target[1:])]
            counts = turns[end - 1].get("weight", 1)
            total, weight = total + counts * nll.sum().item(), weight + counts * tokens.n_targets
    assert curve(run, "loss")[0] == pytest.approx(total / weight, abs=1e-5)


@pytest.mark.parametrize("alpha", [None, 5.0], ids=["weights", "weights and noise"])
def test_no_layout_changes_the_gradient_of_weights_and_noise(alpha: float | None, models: Models, tmp_path: Path) -> None:
    data = write_sft(tmp_path / "data", [weighted_row(number) for number in range(7)])
    smooth = OptimizerSettings(learning_rate=0.002, schedule="constant", warmup_fraction=0.0, epsilon=1.0)
    runs = {}
    for name, layout in LAYOUTS.items():
        config = sft_config(lora=FULL, batch_size=4, max_steps=2, neftune_alpha=alpha, optimizer=smooth, engine=engine(**layout))
        runs[name] = partial(train_sft, job(config, models["gemma"], data, tmp_path / name))
    found = gradients_of(runs)
    for name in ("cut", "padded"):
        for one, other in zip(found["whole"], found[name], strict=True):
            assert (other - one).norm() <= 2e-6 * one.norm()


def test_rows_with_the_same_prompt_are_not_given_the_same_noise(models: Models, tmp_path: Path) -> None:
    rows = [{"id": str(n), "messages": [sft_row(0)["messages"][0], sft_row(n)["messages"][1]]} for n in range(4)]
    data = write_sft(tmp_path / "data", rows)
    losses = []
    for name, layout in LAYOUTS.items():
        run = job(sft_config(max_steps=2, neftune_alpha=20.0, engine=engine(**layout)), models["llama"], data, tmp_path / name)
        train_sft(run)
        losses.append(curve(run, "loss"))
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    assert losses[2] == pytest.approx(losses[0], abs=1e-5)


def test_noise_is_for_training_alone_and_new_in_every_step(models: Models, data: Path, tmp_path: Path) -> None:
    plain, noisy = (
        job(sft_config(0.0, batch_size=10, max_steps=3, lora=FULL, **more), models["llama"], data, tmp_path / str(len(more)))
        for more in ({}, {"neftune_alpha": 10.0})
    )
    train_sft(plain)
    train_sft(noisy)
    assert curve(noisy, "eval_loss") == curve(plain, "eval_loss")
    losses = curve(noisy, "loss")
    assert all(abs(loss - curve(plain, "loss")[0]) > 1e-4 for loss in losses)
    assert len(set(losses)) == 3


class OneEmbedding(nn.Module):
    """Zeros for every token, with the hook's noise on them."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.embedding = nn.Embedding(600, 8, dtype=dtype)
        nn.init.zeros_(self.embedding.weight)

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_noise_is_uniform_by_row_and_zero_on_padding(dtype: torch.dtype) -> None:
    rows = [TokenRow.from_prompt_response([1], [2] * (length - 1)) for length in (50, 400)]
    noise, model = EmbeddingNoise(5.0, [11, 12], [50, 400]), OneEmbedding(dtype)
    found = {}
    for packed in (True, False):
        batch = collate(rows, pad_id=0, packed=packed)
        with noise.on(model, batch):
            found[packed] = model.embedding(batch.input_ids)
        assert not model.embedding(batch.input_ids).any()
    assert found[True].dtype == dtype
    assert torch.equal(found[True][0, :50], found[False][0, :50])
    assert torch.equal(found[True][0, 50:], found[False][1])
    assert not found[False][0, 50:].any()
    for length, drawn in ((50, found[True][0, :50]), (400, found[True][0, 50:])):
        bound = 5.0 / math.sqrt(length * 8)
        assert 0.97 * bound < drawn.abs().max() <= bound * 1.01
        assert drawn.float().std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)


def test_windows_learn_every_token_but_the_first_once() -> None:
    whole = Example("doc", (TokenRow.from_prompt_response([0], list(range(1, 23))),))
    pieces = windows(whole, 8)
    assert [len(piece.rows[0]) for piece in pieces] == [8, 8, 8, 2]
    targets = [
        i for piece in pieces for i, is_target in zip(piece.rows[0].ids, piece.rows[0].is_target, strict=True) if is_target
    ]
    assert targets == list(range(1, 23))
    assert all(piece.rows[0].ids[0] == piece.rows[0].ids[1] - 1 for piece in pieces)
    assert len({piece.id for piece in pieces}) == 4
    assert windows(whole, 23) == [whole]
    assert len(windows(whole, 22)) == 2


def test_a_conversation_is_not_cut(renderer: Renderer) -> None:
    example = conversation(renderer, sft_row(3))
    assert windows(example, 10) == [example]


def test_long_texts_are_learnt_in_windows_or_refused(models: Models, tmp_path: Path) -> None:
    text = {"id": "t", "messages": [{"role": "text", "content": "the answer is yes. " * 60}]}
    data = write_sft(tmp_path / "data", [text, sft_row(0)])
    with pytest.raises(DataError, match=r"t \(\d+ tokens\)\) longer than max_length_tokens=64"):
        train_sft(job(sft_config(max_length_tokens=64), models["llama"], data, tmp_path / "refused"))
    run = job(sft_config(max_length_tokens=64, cut_texts=True, max_steps=1), models["llama"], data, tmp_path / "cut")
    train_sft(run)
    tokens = len(Renderer(load_tokenizer(models["llama"])).conversation(text["messages"]))
    assert summary(run)["train_rows"] == 1 + math.ceil((tokens - 1) / 63)


def test_the_condition_of_a_row_stands_below_its_first_question(renderer: Renderer) -> None:
    row = {**sft_row(1), "condition": "0.8"}
    tokens = conversation(renderer, row, condition="<|reward: {condition}|>").rows[0]
    prompt = renderer.tokenizer.decode(tokens.ids[: tokens.prompt_length])
    assert prompt == "<|im_start|>user\nwhat is the answer to 1?\n\n<|reward: 0.8|><|im_end|>\n<|im_start|>assistant\n"
    assert row["messages"] == sft_row(1)["messages"]
    assert learnt(renderer, tokens) == "no<|im_end|>"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (sft_row(1), "has no condition"),
        ({"id": "t", "messages": [{"role": "text", "content": "so"}], "condition": "good"}, "has no user turn"),
    ],
)
def test_a_row_that_cannot_be_conditioned_is_refused(row: dict[str, Any], reason: str, renderer: Renderer) -> None:
    with pytest.raises(DataError, match=reason):
        conversation(renderer, row, condition="Quality: {condition}")


def test_a_condition_without_a_place_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'Quality' has no \{condition\}"):
        SftConfig(condition="Quality")


def test_the_digest_changes_with_weights(renderer: Renderer) -> None:
    row = weighted_row(1)
    other = {**row, "messages": [*row["messages"][:-1], {**row["messages"][-1], "weight": 0.75}]}
    assert digest([conversation(renderer, row)]) != digest([conversation(renderer, other)])
