"""Policies and scorers over batches: the same numbers however sequences are laid out, for four architectures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf_core.batching.collate import collate
from rlhf_core.batching.rows import TokenRow
from rlhf_core.models.load import load_lm, load_scorer
from rlhf_core.models.modules import PolicyModule, ScoreModule
from tests.tiny_models import ARCHITECTURES, Architecture, tiny_model

LENGTHS = [(5, 9), (1, 30), (70, 20), (12, 1)]


def rows(seed: int = 1) -> list[TokenRow]:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda n: torch.randint(3, 480, (n,), generator=generator).tolist()  # noqa: E731
    return [TokenRow.from_prompt_response(draw(prompt), draw(response)) for prompt, response in LENGTHS]


def policy(path: Path) -> PolicyModule:
    return PolicyModule(load_lm(path, dtype="fp32", attention="sdpa")).requires_grad_(False)


def expected_logprobs(path: Path, row: TokenRow) -> Tensor:
    """Straight from transformers: one unpadded sequence, whole logits."""
    model = AutoModelForCausalLM.from_pretrained(path)
    with torch.no_grad():
        every = model(torch.tensor([row.ids])).logits[0].log_softmax(-1)
    return torch.stack([every[i - 1, row.ids[i]] for i in range(len(row)) if row.is_target[i]])


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("packed", [True, False])
def test_logprobs_are_those_of_transformers(tmp_path: Path, arch: Architecture, packed: bool) -> None:
    path = tiny_model(tmp_path, arch)
    logprobs, _ = policy(path)(collate(rows(), pad_id=0, packed=packed))
    for i, row in enumerate(rows()):
        torch.testing.assert_close(logprobs[i, : row.n_targets], expected_logprobs(path, row), atol=1e-5, rtol=0)
        assert torch.count_nonzero(logprobs[i, row.n_targets :]) == 0


@pytest.mark.parametrize(
    ("arch", "changes"),
    [
        ("gemma", {"final_logit_softcapping": 1.5}),
        ("cohere", {"logit_scale": 0.25}),
        ("granite", {"logits_scaling": 4.0}),
    ],
)
def test_what_an_architecture_does_to_its_logits_is_honoured(tmp_path: Path, arch: str, changes: dict[str, float]) -> None:
    path = tiny_model(tmp_path, "gemma" if arch == "gemma" else "llama")
    config = AutoConfig.from_pretrained(path)
    if arch != "gemma":
        kept = (
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "vocab_size",
        )
        values = {name: getattr(config, name) for name in (*kept, "initializer_range", "pad_token_id", "eos_token_id")}
        config = AutoConfig.for_model(arch, **values)
    config.update(changes)
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    [row] = rows()[:1]
    logprobs, _ = policy(path)(collate([row], pad_id=0, packed=True))
    torch.testing.assert_close(logprobs[0], expected_logprobs(path, row), atol=1e-5, rtol=0)


def test_temperature_divides_the_logits_and_entropy_is_that_of_the_same_distribution(tmp_path: Path) -> None:
    path = tiny_model(tmp_path, "qwen3")
    [row] = rows()[:1]
    logprobs, entropy = policy(path)(collate([row], pad_id=0, packed=True), temperature=0.6, with_entropy=True)
    model = AutoModelForCausalLM.from_pretrained(path)
    with torch.no_grad():
        every = (model(torch.tensor([row.ids])).logits[0, 4:-1] / 0.6).log_softmax(-1)
    torch.testing.assert_close(logprobs[0], every.gather(-1, torch.tensor(row.ids[5:])[:, None])[:, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(entropy[0], -(every.exp() * every).sum(-1), atol=1e-5, rtol=0)


def test_a_batch_without_rows_gives_nothing_but_a_graph(tmp_path: Path) -> None:
    module = policy(tiny_model(tmp_path, "llama")).requires_grad_(True)
    logprobs, _ = module(collate([], pad_id=0, packed=True))
    logprobs.sum().backward()
    assert logprobs.shape == (0, 0)
    assert all(p.grad is not None and torch.count_nonzero(p.grad) == 0 for p in module.parameters())


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_scores_are_those_of_sequence_classification_and_values_are_read_before_their_tokens(
    tmp_path: Path, arch: Architecture
) -> None:
    scorer = load_scorer(tiny_model(tmp_path, arch), dtype="fp32", attention="sdpa", new_head=True)
    torch.nn.init.normal_(scorer.score.weight, generator=torch.Generator().manual_seed(0))
    scorer.save_pretrained(tmp_path / "scorer")
    (tmp_path / "scorer" / "tokenizer.json").symlink_to(tiny_model(tmp_path, arch) / "tokenizer.json")
    module = ScoreModule(load_scorer(tmp_path / "scorer", dtype="fp32", attention="sdpa", new_head=False)).requires_grad_(False)
    batch = collate(rows(), pad_id=0, packed=True)
    scores, values = module(batch), module(batch, per_token=True)
    reference = AutoModelForSequenceClassification.from_pretrained(tmp_path / "scorer").requires_grad_(False)
    reference.config.pad_token_id = None
    for i, row in enumerate(rows()):
        torch.testing.assert_close(scores[i], reference(torch.tensor([row.ids])).logits[0, 0], atol=1e-5, rtol=0)
        before_last = replace(row, ids=row.ids[:-1], is_target=row.is_target[:-1])
        last_value = values[i, row.n_targets - 1]
        torch.testing.assert_close(last_value, reference(torch.tensor([before_last.ids])).logits[0, 0], atol=1e-5, rtol=0)
