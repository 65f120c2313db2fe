"""Low-rank adapters: put into a model, and merged back into plain weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from data_processing.errors import ConfigError
from rlhf_core.settings.training import LoraSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADAPTER = "default"
HEAD_NAME = "score"


def add_lora(hf_model: PreTrainedModel, settings: LoraSettings) -> None:
    """Put adapters on the linear layers (all but the head, or `settings.target_modules`), in place.

    A fresh adapter changes no output. Everything else is frozen, but for a scorer's head, which is trained as it is. Experts
    are no linear layers where transformers holds all of a layer's in one tensor. Raises `ConfigError` for a target that
    matches no linear layer, and for layers that peft cannot adapt.
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=[f"0.{name}" for name in _targets(hf_model, settings.target_modules)],
        fan_in_fan_out=any(_is_conv1d(module) for module in hf_model.modules()),
    )
    try:
        # Wrapped, since in a model whose type it knows peft takes dense layers with an expert's name to mean the experts.
        inject_adapter_in_model(config, nn.Sequential(hf_model), adapter_name=ADAPTER)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"lora: {type(hf_model).__name__} cannot take these adapters: {error}") from error
    for name, parameter in hf_model.named_parameters():
        parameter.requires_grad_("lora_" in name or name.startswith(f"{HEAD_NAME}."))


def check_targets(folder: Path, targets: list[str], place: str, *, trust_remote_code: bool) -> None:
    """Raise `ConfigError`, beginning with `place`, for a target that is no linear layer of the model in `folder`.

    The model is built from its configuration alone, without memory for weights.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    try:
        _targets(model, targets)
    except ConfigError as error:
        raise ConfigError(f"{place}.{error}") from None


@contextmanager
def without_adapters(hf_model: PreTrainedModel) -> Iterator[None]:
    """Inside, the model computes what it computed before `add_lora`, but for a scorer's head, which may have been trained."""
    layers = [layer for _, layer in _adapted_layers(hf_model)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def lora_settings(hf_model: PreTrainedModel) -> LoraSettings | None:
    """Settings that put the same adapters on the same kind of model again; None for a model without."""
    adapted = dict(_adapted_layers(hf_model))
    if not adapted:
        return None
    layer = next(iter(adapted.values()))
    rank = int(layer.r[ADAPTER])
    return LoraSettings(rank=rank, alpha=float(layer.scaling[ADAPTER]) * rank, target_modules=sorted(adapted))


@torch.no_grad()
def merged_state_dict(hf_model: PreTrainedModel, dtype: torch.dtype | None = None, *, copied: bool = True) -> dict[str, Tensor]:
    """All weights and saved buffers under their plain names, adapters added in fp32 and the sum rounded once to `dtype`.

    `dtype` None leaves sums in fp32 and other weights as they are; buffers are never rounded. The model stays as it is and
    shares no memory with the result; with `copied` False it may, for whoever is done with the result before the next
    optimizer step. Of tied weights only the owner is listed. Under ZeRO 3 every rank must call this: the weights are gathered.
    """
    # What ZeRO 3 has gathered is gone after the block.
    copied = copied or bool(_partitioned(hf_model))
    buffers = dict(hf_model.named_buffers())
    with gathered(hf_model):
        own = {tensor.data_ptr() for tensor in hf_model.state_dict().values()}
        return {
            name: value.to(value.dtype if dtype is None or name in buffers else dtype, copy=copied and value.data_ptr() in own)
            for name, value in merged_tensors(hf_model)
        }


@torch.no_grad()
def merged_tensors(hf_model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """One after the other what `merged_state_dict` lists: sums in fp32, all else the model's own tensors."""
    owners = {id(parameter): name for name, parameter in hf_model.named_parameters()}
    adapted = dict(_adapted_layers(hf_model))
    for name, tensor in hf_model.state_dict(keep_vars=True).items():
        if "lora_" in name or owners.get(id(tensor), name) != name:
            continue
        layer, _, leaf = name.rpartition(".base_layer.")
        value = tensor.detach()
        if layer in adapted and leaf == "weight":
            value = value.float() + _delta(adapted[layer])
        yield f"{layer}.{leaf}" if layer else name, value


def gathered(module: nn.Module) -> AbstractContextManager[Any]:
    """A context in which weights that ZeRO 3 has partitioned are whole, for reading; for others it does nothing."""
    partitioned = _partitioned(module)
    if not partitioned:
        return nullcontext()
    import deepspeed

    context: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(partitioned)
    return context


def _partitioned(module: nn.Module) -> list[nn.Parameter]:
    """The parameters of which ZeRO 3 left each rank a part."""
    return [parameter for parameter in module.parameters() if hasattr(parameter, "ds_id")]


def _targets(hf_model: PreTrainedModel, asked: list[str] | None) -> list[str]:
    head = hf_model.get_output_embeddings()
    linear = [
        name
        for name, module in hf_model.named_modules()
        if (isinstance(module, nn.Linear) or _is_conv1d(module)) and module is not head and name != HEAD_NAME
    ]
    if asked is None:
        return linear
    for target in asked:
        if not any(_is_called(name, target) for name in linear):
            known = sorted({name.rpartition(".")[2] for name in linear})
            raise ConfigError(f"lora.target_modules: '{target}' is no linear layer of this model; it has {', '.join(known)}")
    return [name for name in linear if any(_is_called(name, target) for target in asked)]


def _is_called(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _is_conv1d(module: nn.Module) -> bool:
    """GPT-2's linear layer, whose weight is [in, out]."""
    return type(module).__name__ == "Conv1D"


def _adapted_layers(hf_model: nn.Module) -> Iterator[tuple[str, Any]]:
    return ((name, module) for name, module in hf_model.named_modules() if hasattr(module, "lora_A"))


def _delta(layer: Any) -> Tensor:
    """scaling * B A in fp32, in the layout of the layer's weight."""
    product: Tensor = layer.lora_B[ADAPTER].weight.float() @ layer.lora_A[ADAPTER].weight.float()
    product *= layer.scaling[ADAPTER]
    return product.T if layer.fan_in_fan_out else product
