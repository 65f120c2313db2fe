"""AdamW, its learning-rate schedule, and the DeepSpeed configuration that goes with our settings."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from data_processing.errors import ConfigError
from rlhf_core.settings.training import EngineSettings, OptimizerSettings, Schedule

REDUCE_BUCKET_ELEMENTS = 5_000_000


def learning_rate_at(step: int, total_steps: int, settings: OptimizerSettings) -> float:
    """Learning rate of optimizer step `step` (from 0) of `total_steps`: linear warm-up, then the schedule down to 0.

    The first step's rate is above 0, and so is the last one's.
    """
    warmup_steps = round(settings.warmup_fraction * total_steps)
    if step < warmup_steps:
        return settings.learning_rate * (step + 1) / (warmup_steps + 1)
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    factors = {
        Schedule.constant: 1.0,
        Schedule.linear: 1.0 - progress,
        Schedule.cosine: 0.5 * (1.0 + math.cos(math.pi * progress)),
    }
    return settings.learning_rate * factors[settings.schedule]


def make_optimizer(module: nn.Module, settings: OptimizerSettings) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; biases and norms do not decay. Raises `ConfigError` where nothing is trainable."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not trainable:
        raise ConfigError("the model has no trainable parameter: set lora.rank above 0, or 0 to train all weights")
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    # One pass over memory instead of a dozen; ZeRO hands it a few large flat tensors.
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        fused=True,
    )


def deepspeed_config(engine: EngineSettings, optimizer: OptimizerSettings, world_size: int) -> dict[str, Any]:
    """The JSON that `deepspeed.initialize` takes. Gradients are added up and sent in fp32 whatever the compute precision."""
    zero: dict[str, Any] = {"stage": engine.zero_stage}
    if engine.zero_stage:
        # By default every rank allocates half a billion elements and copies all gradients there. A gradient larger than the
        # bucket is summed where it lies.
        zero["reduce_bucket_size"] = REDUCE_BUCKET_ELEMENTS
    if engine.zero_stage in (1, 2):
        # DeepSpeed's "scatter" is an all-reduce as well, of a copy that is copied back.
        zero["reduce_scatter"] = False
    if engine.zero_stage == 1:
        # Gradients stay whole, so they need not be moved next to each other.
        zero["contiguous_gradients"] = False
    if engine.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    return {
        # Micro-batches are cut by tokens, outside; these numbers only have to agree with each other.
        "train_batch_size": world_size,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": optimizer.max_grad_norm,
        "zero_optimization": zero,
        # Without the immediate update, stage 1 counts every micro-batch's gradient again with each later one.
        "bf16": {"enabled": engine.precision == "bf16", "immediate_grad_update": True},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
    }
