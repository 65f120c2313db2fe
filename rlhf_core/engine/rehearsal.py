"""The conversion of a trained model, rehearsed on the untrained one: what could fail at the end fails before the first step.

Same code, and every tensor of the model: a small model goes all the way through a checkpoint, a folder and back. Of a larger
one only names and shapes do, on tensors without memory.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from data_processing.errors import ConfigError
from rlhf_core.engine.artifact import PolicyDescription, describe
from rlhf_core.engine.convert import convert_checkpoint, merged_model, publish
from rlhf_core.engine.distributed import barrier
from rlhf_core.settings.models import ConvertConfig

if TYPE_CHECKING:
    from rlhf_core.engine.engine import TrainingEngine

SMALL_BYTES = 100_000_000
SHOWN = 3


def rehearse_convert(engine: TrainingEngine, folder: Path) -> None:
    """Convert the model of `engine` as it is, in `folder`, which every rank sees and which is gone afterwards. Collective.

    Raises `ConfigError` on rank 0 where converting it after training would fail.
    """
    hf = engine.module.hf
    small = sum(_numel(parameter) * parameter.element_size() for parameter in hf.parameters()) < SMALL_BYTES
    if small:
        _make_anew(engine, folder)
        engine.save_final(folder)
        barrier()
    if engine.rank:
        return
    try:
        # What is filled in at random while a model loads must not move what training draws.
        with torch.random.fork_rng(devices=[]):
            if small:
                convert_checkpoint(folder, Path(hf.name_or_path), folder / "model", ConvertConfig(), {})
            else:
                convert_outline(engine.module)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever it is, it would come after the training
        reason = " ".join(str(error).split())
        raise ConfigError(f"the model could be trained, and not converted afterwards: {reason}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def convert_outline(module: Any) -> None:
    """Convert the names and shapes of a module's model, which may be sharded; no weight is read, made or written.

    Raises what `convert_checkpoint` raises for them, and `ConfigError` for names that `from_pretrained` would not read.
    """
    hf, base = module.hf, Path(module.hf.name_or_path)
    policy = describe(module, "fp32")
    model = merged_model(policy, _trained(hf), _outline(hf), _outline(hf))
    with TemporaryDirectory() as folder:
        publish(model, policy, base, base, Path(folder), state_dict={})
        _check_readable(model, policy)


def _outline(hf: Any) -> Any:
    """The model as it is loaded from its folder, on tensors without memory."""
    with torch.device("meta"):
        model = type(hf)(copy.deepcopy(hf.config))
    if hf.can_generate():
        model.generation_config = copy.deepcopy(hf.generation_config)
    # How names in the folder became names in memory; they are turned back when it is saved.
    model._weight_conversions = hf._weight_conversions
    return model


def _trained(hf: Any) -> Iterator[tuple[str, Tensor]]:
    """What a training checkpoint holds, in outline."""
    saved = hf.state_dict(keep_vars=True)
    for name, parameter in hf.named_parameters():
        if parameter.requires_grad:
            yield name, torch.empty(_shape(parameter), device="meta")
    for name, buffer in hf.named_buffers():
        if name in saved:
            yield name, torch.empty_like(buffer, device="meta")


def _check_readable(model: Any, policy: PolicyDescription) -> None:
    """Raise `ConfigError` unless the names and shapes that saving writes are those that loading looks for."""
    from transformers.core_model_loading import revert_weight_conversion
    from transformers.modeling_utils import remove_tied_weights_from_state_dict

    written = revert_weight_conversion(model, remove_tied_weights_from_state_dict(model.state_dict(), model))
    _, info = type(model).from_pretrained(
        None,
        config=copy.deepcopy(model.config),
        state_dict=written,
        device_map="meta",
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    faults = {kind: sorted(map(str, info[f"{kind}_keys"])) for kind in ("missing", "unexpected", "mismatched")}
    if any(faults.values()):
        shown = ", ".join(f"{kind} {names[:SHOWN]}" for kind, names in faults.items() if names)
        raise ConfigError(f"{policy.architecture} would not read the folder that it writes: {shown}; choose another model")


def _make_anew(engine: TrainingEngine, folder: Path) -> None:
    """An empty folder, whatever an attempt that was killed has left there."""
    if engine.rank == 0:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    barrier()


def _shape(parameter: Tensor) -> torch.Size:
    """The parameter's own, of which ZeRO 3 may have left a part."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape


def _numel(parameter: Tensor) -> int:
    return _shape(parameter).numel()
