"""A DeepSpeed checkpoint of any trainer as a plain model folder: ZeRO shards put together in fp32, and put into the model they belong to."""

from __future__ import annotations

from pathlib import Path

from data_processing.errors import ConfigError
from rlhf_core.engine.artifact import LATEST_NAME, PolicyDescription
from rlhf_core.engine.convert import check_reloaded, publish, put_in, zero_tensors
from rlhf_core.models.load import load_lm
from rlhf_core.precision import Dtype

# What trainers put before the names of a model's own weights.
_WRAPPED = ("", "module.", "hf.", "model.", "module.hf.", "_forward_module.", "_forward_module.model.")
_ADAPTERS = "lora_"


def export_zero(checkpoint: Path, base: Path, output: Path, *, dtype: Dtype, tag: str | None = None) -> None:
    """Write the model of a DeepSpeed checkpoint (any ZeRO stage) to `output`, in safetensors with config and tokenizer of `base`.

    `tag` names the step, None takes the latest. The fp32 weights are rounded once, if `dtype` is another. Raises `ConfigError` for a step
    that is not there, and where checkpoint and base do not fit.
    """
    steps = sorted(path.name for path in checkpoint.iterdir() if path.is_dir())
    chosen = tag or (checkpoint / LATEST_NAME).read_text(encoding="utf-8").strip()
    if chosen not in steps:
        raise ConfigError(
            f"export: {checkpoint} has no step '{chosen}'; it has {', '.join(steps) or 'none'}; name one with --tag"
        )
    try:
        state = zero_tensors(checkpoint, chosen, with_frozen=True)
    except (ValueError, OSError, AssertionError) as error:
        raise ConfigError(
            f"export: {checkpoint / chosen} cannot be put together: {error}; it needs the shards of all ranks"
        ) from error
    if adapters := [name for name in state if _ADAPTERS in name]:
        raise ConfigError(
            f"export: {checkpoint / chosen} holds adapters ({adapters[0]}), whose place in a model its trainer knows; merge them there first"
        )
    model = load_lm(base, dtype=dtype, attention="auto", trust_remote_code=True)
    places = set(model.state_dict())
    prefix = next((wrap for wrap in _WRAPPED if {name.removeprefix(wrap) for name in state} <= places), "")
    put_in(
        model,
        ((name.removeprefix(prefix), value) for name, value in state.items()),
        {name for name, _ in model.named_parameters()},
    )
    policy = PolicyDescription(head="lm", lora=None, dtype=dtype, architecture=type(model).__name__)
    publish(model, policy, base, base, output)
    check_reloaded(model, load_lm(output, dtype=dtype, attention="auto", trust_remote_code=True), output)
