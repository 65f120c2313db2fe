"""Low-rank adapters through peft: put into a model in place, and merged into plain weights without changing it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from data_processing.errors import ConfigError
from rlhf_core.config import LoraSettings

ADAPTER = "default"
HEADS = ("lm_head", "embed_out", "score")


def add_lora(hf: Any, settings: LoraSettings) -> None:
    """Put adapters into `hf` in place and freeze all else but a `score` head. A fresh adapter changes no output.

    Raises `ConfigError` for target names the model does not have, naming those it has.
    """
    from peft import LoraConfig, inject_adapter_in_model

    targets = _targets(hf, settings.target_modules)
    hf.requires_grad_(False)
    config = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout, target_modules=targets)
    inject_adapter_in_model(config, hf, adapter_name=ADAPTER)
    dtype = next(hf.parameters()).dtype
    for name, parameter in hf.named_parameters():
        trained = ".lora_" in name or name.startswith("score.")
        parameter.requires_grad_(trained)
        if trained:
            parameter.data = parameter.data.to(dtype)


def lora_settings(hf: Any) -> LoraSettings | None:
    """The settings of the adapters in `hf`, or None where it has none."""
    config = getattr(hf, "peft_config", {}).get(ADAPTER)
    if config is None:
        return None
    return LoraSettings(
        rank=config.r, alpha=config.lora_alpha, dropout=config.lora_dropout, target_modules=sorted(config.target_modules)
    )


def merged_state_dict(hf: Any) -> dict[str, Tensor]:
    """All weights of `hf` under their plain names, fp32 where adapters were merged in; `hf` stays as it is.

    Under ZeRO stage 3 every rank must call it: the weights are gathered.
    """
    with gathered(hf):
        state = {name: value.detach() for name, value in hf.state_dict().items()}
        merged: dict[str, Tensor] = {}
        for name, value in state.items():
            if ".lora_" in name:
                continue
            plain = name.replace(".base_layer.", ".")
            merged[plain] = _merged(hf, name, value, state) if plain != name and name.endswith(".weight") else value.clone()
        return merged


def gathered(hf: nn.Module) -> Any:
    """A context in which ZeRO-3's parameters are whole; for others it does nothing."""
    from contextlib import nullcontext

    parameters = [p for p in hf.parameters() if hasattr(p, "ds_id")]
    if not parameters:
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(parameters)


def _merged(hf: Any, name: str, base: Tensor, state: dict[str, Tensor]) -> Tensor:
    layer_name = name.removesuffix(".base_layer.weight")
    layer = hf.get_submodule(layer_name)
    a, b = state[f"{layer_name}.lora_A.{ADAPTER}.weight"].float(), state[f"{layer_name}.lora_B.{ADAPTER}.weight"].float()
    delta = (b @ a) * layer.scaling[ADAPTER]
    # GPT-2's Conv1D keeps its weight as [in, out].
    return base.float() + (delta.T if layer.fan_in_fan_out else delta)


def _targets(hf: Any, wanted: list[str] | None) -> list[str]:
    """Last parts of the names of the layers that get adapters; by default every linear layer but the heads."""
    from transformers.pytorch_utils import Conv1D

    linear = {name.rsplit(".", 1)[-1] for name, layer in hf.named_modules() if isinstance(layer, nn.Linear | Conv1D)}
    available = sorted(linear - set(HEADS))
    if wanted is None:
        return available
    unknown = sorted(set(wanted) - set(available))
    if unknown:
        raise ConfigError(f"lora.target_modules {unknown} are not linear layers of {type(hf).__name__}; it has {available}")
    return wanted


def trainable_parameters(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that an optimizer updates."""
    return [p for p in module.parameters() if p.requires_grad]


def apply_trained(hf: Any, trained: dict[str, Tensor]) -> None:
    """Copy trained weights (names as in `hf`) into `hf`; every trainable one must be there and nothing else."""
    expected = {name for name, p in hf.named_parameters() if p.requires_grad}
    if expected != set(trained):
        raise ConfigError(
            f"checkpoint and model do not fit: missing {sorted(expected - set(trained))[:3]}, unknown {sorted(set(trained) - expected)[:3]}; "
            "convert with the base model the training started from"
        )
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if name in trained:
                parameter.copy_(trained[name])
