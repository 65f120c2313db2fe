"""Linear layers for decoding on a CPU: oneDNN with weights laid out beforehand, several times as fast for a few rows.

Only for reading: nothing here carries a gradient. Where oneDNN is missing the layers stay as they are.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

# The number of rows that the layout is chosen for; any other works too.
ROWS = 16


def pack_linear_layers(model: nn.Module) -> None:
    """Let every linear layer of a model on the CPU compute with a copy of its present weight in oneDNN's own layout.

    The parameters keep their names and values. Call it again after each change of the weights.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return
    # The very operators that torch.compile puts in place of linear layers whose weights are frozen.
    packed: dict[int, Tensor] = {}
    for layer in model.modules():
        if type(layer) is nn.Linear and _can_pack(layer.weight):
            key = layer.weight.data_ptr()
            if key not in packed:
                packed[key] = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), ROWS)
            layer.forward = partial(_linear, packed[key], layer.bias)  # type: ignore[method-assign]


def why_not_packed(model: nn.Module) -> str | None:
    """Why linear layers of a model on the CPU are computed as they are; None where they are packed, and for a model elsewhere."""
    weights = [layer.weight for layer in model.modules() if type(layer) is nn.Linear and layer.weight.device.type == "cpu"]
    if not weights:
        return None
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return "oneDNN is missing"
    return None if any(map(_can_pack, weights)) else "oneDNN has no bf16 on this processor"


def takes_bf16() -> bool:
    """Whether oneDNN computes in bf16 on this processor: on x86 it wants AVX-512."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _can_pack(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and (weight.dtype != torch.bfloat16 or takes_bf16())


def _linear(weight: Tensor, bias: Tensor | None, hidden: Tensor) -> Tensor:
    output: Tensor = torch.ops.mkldnn._linear_pointwise(hidden, weight, bias, "none", [], "")
    return output
