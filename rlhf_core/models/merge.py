"""Several models of one architecture to one, tensor by tensor: in memory is one file of the result, and never two models.

The arithmetic is that of `peft.utils.merge_utils`, in fp32 and rounded once to what the first model has.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from data_processing.errors import ConfigError
from data_processing.schemas import canonical_json, hash64
from rlhf_core.models.folder import check_model_folder, read_config
from rlhf_core.models.generation import GENERATION_NAME
from rlhf_core.models.load import same_tokens
from rlhf_core.models.tokenizer_files import copy_tokenizer
from rlhf_core.models.weight_files import read_weight_files, shown
from rlhf_core.settings.models import MergeConfig

CARD_NAME, CONFIG_NAME = "README.md", "config.json"


def merge_models(
    models: Mapping[str, Path],
    base: Path,
    output: Path,
    config: MergeConfig,
    *,
    seed: int,
    lineage: Mapping[str, Any],
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Write the merge of `models`, by name, to the folder `output`; returns facts about it.

    What is no weight (tokenizer, settings, what it renders with) is that of the first model by name. `tell` hears how many tensors are
    done of how many. Raises `ConfigError`, before anything is written, for folders whose tokenizers, architectures or tensors differ.
    """
    ordered = {name: models[name] for name in sorted(models)}
    first = next(iter(ordered.values()))
    origin = {} if config.method == "linear" else {"base": base}
    _check_alike({**ordered, **origin})
    places, base_places = ([_places(folder) for folder in folders.values()] for folders in (ordered, origin))
    files = read_weight_files(first)
    weights = [config.weights.get(name, 1.0) for name in ordered]
    total, done, parameters = len(places[0]), 0, 0
    for file in files.files:
        merged: dict[str, Tensor] = {}
        with safe_open(file, framework="pt") as opened:
            names = list(opened.keys())
        for name in names:
            own, bases = ([_read(its[name], name) for its in folders] for folders in (places, base_places))
            drawn = hash64(canonical_json([seed, name]))
            merged[name] = merged_tensor(own, bases[0] if bases else None, weights, config, drawn).contiguous()
            done, parameters = done + 1, parameters + own[0].numel()
            tell(done, total)
        save_file(merged, output / file.name, metadata={"format": "pt"})
    copy_tokenizer(first, output)
    beside = [first / CONFIG_NAME, first / GENERATION_NAME, *first.glob("*.py"), *([files.index] if files.index else [])]
    for path in (path for path in beside if path.is_file()):
        shutil.copyfile(path, output / path.name)
    facts = {"models": len(ordered), "method": config.method, "tensors": total, "parameters": parameters}
    (output / CARD_NAME).write_text(_card(facts, config, ordered, lineage), encoding="utf-8")
    return facts


def merged_tensor(
    tensors: Sequence[Tensor], base: Tensor | None, weights: Sequence[float], config: MergeConfig, seed: int
) -> Tensor:
    """One tensor of several models, computed in fp32, as precise as the first; what are no real numbers stay those of the first.

    `linear`, which has no base, is the mean of the tensors by their weights. The others add to the base what becomes of the differences
    from it: of each a share `density` stays, the largest (`ties`, arXiv 2306.01708) or any (`dare_*`, arXiv 2311.03099, the rest made
    up for), and they are summed by their weights (`dare_linear`), or averaged where they agree with the sign of most (`*ties`).
    """
    from peft.utils import merge_utils

    first = tensors[0]
    if not first.is_floating_point():
        return first
    factors = torch.tensor(weights, dtype=torch.float32)
    if base is None:
        mean: Tensor = merge_utils.task_arithmetic([tensor.float() for tensor in tensors], factors / factors.sum())
        return mean.to(first.dtype)
    differences = [tensor.float() - base.float() for tensor in tensors]
    # Which differences DARE drops is drawn for this tensor alone, whatever was merged before it.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        change: Tensor = getattr(merge_utils, config.method)(differences, factors, config.density)
    return (base.float() + change).to(first.dtype)


def _check_alike(folders: Mapping[str, Path]) -> None:
    """Raise `ConfigError` unless all folders hold models of one architecture, with the same tensors and the same tokens."""
    (first, own), *others = folders.items()
    check_model_folder(own, trust_remote_code=True)
    for name, folder in others:
        check_model_folder(folder, trust_remote_code=True)
        one, two = (read_config(path).get("architectures") for path in (own, folder))
        if one != two:
            raise ConfigError(
                f"merge: '{first}' is a {one} and '{name}' a {two}; merge models that were trained from one another"
            )
        if differing := _differing(read_weight_files(own).shapes, read_weight_files(folder).shapes):
            raise ConfigError(
                f"merge: '{first}' and '{name}' have tensors of other names or shapes ({shown(differing)}); merge models that were "
                "trained from one another"
            )
        if not same_tokens(own, folder, trust_remote_code=True):
            raise ConfigError(f"merge: '{first}' and '{name}' have other tokens; merge models with the same tokenizer")


def _differing(one: Mapping[str, Any] | None, two: Mapping[str, Any] | None) -> list[str]:
    one, two = one or {}, two or {}
    return sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name))


def _places(folder: Path) -> dict[str, Path]:
    """The file of each tensor of a model folder."""
    places: dict[str, Path] = {}
    for file in read_weight_files(folder).files:
        with safe_open(file, framework="pt") as opened:
            places |= dict.fromkeys(opened.keys(), file)
    return places


def _read(file: Path, name: str) -> Tensor:
    with safe_open(file, framework="pt") as opened:
        tensor: Tensor = opened.get_tensor(name)
    return tensor


def _card(facts: Mapping[str, Any], config: MergeConfig, models: Mapping[str, Path], lineage: Mapping[str, Any]) -> str:
    """The README.md of the merged folder: what it is and what it was made from."""
    weights = ", ".join(f"{name} {config.weights.get(name, 1.0):g}" for name in models)
    density = "" if config.method == "linear" else f", density {config.density:g}"
    return (
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags: [alignflow, merge]\n---\n\n"
        f"# {len(models)} models merged by alignflow\n\n"
        f"- method: {config.method}{density}\n- weights: {weights}\n- parameters: {facts['parameters']:,}\n\n"
        "Load it with `AutoModelForCausalLM.from_pretrained(folder)`.\n\n"
        f"## Lineage\n\n```json\n{json.dumps(lineage, indent=2)}\n```\n"
    )
