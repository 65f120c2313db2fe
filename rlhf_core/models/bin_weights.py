"""Weights as PyTorch saves them (`.bin`): read without running what they hold, and written once as safetensors."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from data_processing.errors import ConfigError
from rlhf_core.models.weight_files import INDEX, WHOLE, WeightFiles


def read_bin(file: Path, device: str = "cpu") -> dict[str, torch.Tensor]:
    """The tensors in a file of PyTorch, by name. Raises `ConfigError` for a file that holds anything else."""
    try:
        state: dict[str, torch.Tensor] = torch.load(file, map_location=device, weights_only=True)
    except Exception as error:  # pickles of others raise anything
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"{file} cannot be read as weights ({type(error).__name__}: {reason}); save them as safetensors"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise ConfigError(f"{file} holds more than weights by name; save the model as safetensors")
    return state


def convert_bin(weights: WeightFiles, output: Path) -> None:
    """Write files of PyTorch into `output` as safetensors, one for one, with an index where there are several."""
    from safetensors.torch import save_file

    weight_map: dict[str, str] = {}
    for number, file in enumerate(weights.files, start=1):
        name = WHOLE if len(weights.files) == 1 else f"model-{number:05d}-of-{len(weights.files):05d}.safetensors"
        # Tensors that share their memory, as tied ones do, are written once each.
        tensors = {key: tensor.clone().contiguous() for key, tensor in read_bin(file).items()}
        save_file(tensors, output / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
    if len(weights.files) > 1:
        index = {"metadata": {}, "weight_map": weight_map}
        (output / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")
