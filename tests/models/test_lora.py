"""Adapters go where they should, start as nothing, and merge into exactly what they computed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from data_processing.errors import ConfigError
from rlhf_core.models.load import load_lm, load_scorer
from rlhf_core.models.lora import add_lora, lora_settings, merged_state_dict, without_adapters
from rlhf_core.settings.training import LoraSettings
from tests.architectures import architecture
from tests.tiny_models import ARCHITECTURES, Architecture, tiny_model

IDS = torch.arange(3, 30)[None]


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("tied", [True, False])
def test_merged_weights_compute_what_base_and_adapters_did(tmp_path: Path, arch: Architecture, tied: bool) -> None:
    folder = tiny_model(tmp_path, arch, tied=tied)
    model = load_lm(folder, dtype="fp32", attention="sdpa").requires_grad_(True)
    original = model(IDS).logits.detach()
    add_lora(model, LoraSettings(rank=4, alpha=10.0))
    assert torch.equal(model(IDS).logits, original)
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trainable
    assert all("lora_" in name for name in trainable)
    assert not any("lm_head" in name for name in trainable)

    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(1))
    adapted = model(IDS).logits.detach()
    with without_adapters(model):
        assert torch.equal(model(IDS).logits, original)
    assert torch.equal(model(IDS).logits, adapted)
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == trainable
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = merged_state_dict(model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())

    plain = AutoModelForCausalLM.from_pretrained(folder)
    missing, unknown = plain.load_state_dict(state, strict=False)
    assert (missing, unknown) == (["lm_head.weight"] if tied else [], [])
    assert not torch.allclose(adapted, original, atol=1e-2)
    torch.testing.assert_close(plain(IDS).logits, adapted, atol=1e-5, rtol=0)


def test_the_sum_is_made_in_fp32_and_rounded_once(tmp_path: Path) -> None:
    model = load_lm(tiny_model(tmp_path, "llama"), dtype="bf16", attention="sdpa")
    add_lora(model, LoraSettings(rank=4))
    layer = model.model.layers[0].mlp.up_proj
    torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.05)
    delta = layer.lora_B["default"].weight.float() @ layer.lora_A["default"].weight.float() * 8.0
    exact = layer.base_layer.weight.float() + delta
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(merged_state_dict(model)[name], exact)
    assert torch.equal(merged_state_dict(model, torch.bfloat16)[name], exact.bfloat16())
    assert all(tensor.dtype == torch.bfloat16 for tensor in merged_state_dict(model, torch.bfloat16).values())


def test_merged_weights_share_no_memory_with_the_model(tmp_path: Path) -> None:
    model = load_lm(tiny_model(tmp_path, "llama"), dtype="fp32", attention="sdpa")
    state = merged_state_dict(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert all(torch.count_nonzero(tensor) for tensor in state.values())


def test_a_scorers_head_is_trained_whole(tmp_path: Path) -> None:
    scorer = load_scorer(tiny_model(tmp_path, "qwen3"), dtype="fp32", attention="sdpa", new_head=True)
    add_lora(scorer, LoraSettings(rank=2))
    trainable = {name for name, parameter in scorer.named_parameters() if parameter.requires_grad}
    assert "score.weight" in trainable
    assert all("lora_" in name for name in trainable - {"score.weight"})


def test_an_unknown_target_is_refused_with_what_there_is(tmp_path: Path) -> None:
    model = load_lm(tiny_model(tmp_path, "llama"), dtype="fp32", attention="sdpa")
    with pytest.raises(ConfigError, match=r"'query' is no linear layer.*q_proj"):
        add_lora(model, LoraSettings(rank=2, target_modules=["q_proj", "query"]))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_settings_read_back_put_the_same_adapters_on_again(tmp_path: Path, arch: Architecture) -> None:
    folder = tiny_model(tmp_path, arch)
    first = load_lm(folder, dtype="fp32", attention="sdpa")
    assert lora_settings(first) is None
    add_lora(first, LoraSettings(rank=3, alpha=7.0, target_modules=["c_attn"] if arch == "gpt2" else ["q_proj", "up_proj"]))
    settings = lora_settings(first)
    assert settings is not None
    assert (settings.rank, settings.alpha) == (3, pytest.approx(7.0))
    second = load_lm(folder, dtype="fp32", attention="sdpa")
    add_lora(second, settings)
    assert {name for name, _ in first.named_parameters()} == {name for name, _ in second.named_parameters()}


def test_dense_layers_named_as_experts_are_adapted_themselves(tmp_path: Path) -> None:
    model = load_lm(architecture(tmp_path, "deepseek_v3"), dtype="fp32", attention="sdpa")
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name != "lm_head"}
    add_lora(model, LoraSettings(rank=2))
    adapted = {name.partition(".lora_")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert adapted == linear
    assert lora_settings(model) == LoraSettings(rank=2, target_modules=sorted(linear))
