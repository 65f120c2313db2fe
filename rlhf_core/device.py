"""Where a process computes: on what its settings reserve, not on what the machine happens to have."""

from __future__ import annotations

from typing import Any

import torch

from data_processing.errors import ConfigError
from rlhf_core.settings.training import EngineSettings


def device_for(gpus: float) -> torch.device:
    """The CPU where the settings reserve no GPU for this process, else the one that it sees, wholly its own or shared.

    Raises `ConfigError` where one is reserved and torch sees none.
    """
    if not gpus:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(
            f"engine.gpus_per_rank (evaluate.gpus) is {gpus:g}, but torch {torch.__version__} sees no GPU in this process: install "
            "with `make venv TARGET=gpu` on a machine that has one, or set 0 to compute on the CPU"
        )
    return torch.device("cuda")


def placed(model: Any, engine: EngineSettings) -> Any:
    """A loaded model where its batches are tried out, and then trained; raises what `device_for` does.

    ZeRO 3 takes weights apart from where they were loaded: no GPU may have room for all of them.
    """
    device = device_for(engine.gpus_per_rank)
    return model if engine.zero_stage == 3 else model.to(device)
