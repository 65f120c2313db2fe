"""A score a sequence for models that transformers has no classifier for: the hidden state of the last token, times the head."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from architectures import architecture
from transformers import AutoModelForCausalLM, CodeGenConfig

from rlhf_core.models.load import load_lm, load_scorer
from rlhf_core.models.scorer import is_own_scorer


@pytest.mark.parametrize("name", ["cohere", "granite", "lfm2", "recurrent_gemma"])
def test_a_scorer_of_our_own_reads_the_last_token_and_comes_back_from_its_folder(tmp_path: Path, name: str) -> None:
    folder, ids = architecture(tmp_path, name), torch.arange(10, 40)[None]
    scorer = load_scorer(folder, dtype="fp32", attention="auto", new_head=True)
    assert is_own_scorer(scorer)
    assert scorer(ids).logits.item() == 0, "a new head gives every answer the same score"
    torch.nn.init.normal_(scorer.score.weight)
    hidden = load_lm(folder, dtype="fp32", attention="auto").base_model(ids).last_hidden_state
    assert torch.allclose(scorer(ids).logits[0], hidden[0, -1] @ scorer.score.weight[0], atol=1e-5)
    scorer.save_pretrained(tmp_path / "saved")
    again = load_scorer(tmp_path / "saved", dtype="fp32", attention="auto", new_head=False)
    assert torch.equal(again(ids).logits, scorer(ids).logits)


def test_the_weights_are_found_where_the_family_keeps_them(tmp_path: Path) -> None:
    """CodeGen's begin with `transformer`, not with `model`."""
    config = CodeGenConfig(vocab_size=64, n_embd=32, n_layer=1, n_head=4, n_ctx=64, n_positions=64, rotary_dim=4)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "codegen")
    scorer = load_scorer(tmp_path / "codegen", dtype="fp32", attention="auto", new_head=True)
    assert is_own_scorer(scorer)
    scorer.save_pretrained(tmp_path / "saved")
    load_scorer(tmp_path / "saved", dtype="fp32", attention="auto", new_head=False)


def test_padding_on_the_right_is_not_what_is_scored(tmp_path: Path) -> None:
    scorer = load_scorer(architecture(tmp_path, "granite"), dtype="fp32", attention="auto", new_head=True)
    torch.nn.init.normal_(scorer.score.weight)
    scorer.config.pad_token_id = 0
    ids = torch.arange(10, 40)
    padded = torch.stack([torch.cat([ids[:20], torch.zeros(10, dtype=torch.long)]), ids])
    alone = [scorer(row[None]).logits.item() for row in (ids[:20], ids)]
    assert scorer(padded, attention_mask=(padded != 0).long()).logits[:, 0].tolist() == pytest.approx(alone, abs=1e-5)


def test_a_model_with_a_classifier_in_transformers_keeps_it(tmp_path: Path) -> None:
    assert not is_own_scorer(load_scorer(architecture(tmp_path, "llama"), dtype="fp32", attention="auto", new_head=True))
