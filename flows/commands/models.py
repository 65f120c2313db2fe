"""Commands about a model that is there: what it is, a copy of it, a conversation with it."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from data_processing.errors import ConfigError
from flows.commands.named_models import NamedModel, find_model
from rlhf_core.engine.artifact import POLICY_NAME, is_training_checkpoint
from rlhf_core.precision import Dtype
from rlhf_core.settings.models import ConvertConfig
from tasks.runtime.contract.home import Home
from tasks.runtime.contract.spec import EVENTS_FILE
from tasks.runtime.store.base import ArtifactStore
from tasks.runtime.store.manifest import MANIFEST_FILE, Manifest
from tasks.runtime.store.places import store_of


def show_model(name: str) -> None:
    """`alignflow show MODEL`."""
    home = Home.open(to_read=True)
    store = store_of(home)
    model = find_model(home, store, name)
    for what, text in _facts(store, model):
        print(f"{what:<12} {text}")
    if model.manifest:
        print("made from")
        for line in _lineage(store, model.manifest, 1):
            print(line)
    for line in _metrics(model):
        print(line)


@dataclass(frozen=True)
class Exported:
    """How a model is exported: its precision, and of a checkpoint what it was trained from and the step."""

    dtype: str | None = None
    base: str | None = None
    tag: str | None = None

    @property
    def precision(self) -> Dtype:
        """The precision of what is converted for it."""
        if self.dtype not in (None, "fp32", "bf16"):
            raise ConfigError(f"export: got --dtype {self.dtype}; allowed are fp32 and bf16")
        return "bf16" if self.dtype == "bf16" else "fp32"


def export_model(name: str, target: Path, how: Exported = Exported()) -> None:  # frozen
    """`alignflow export MODEL DIR`: the model folder, with no links in it; there all at once, or not at all."""
    home = Home.open(to_read=True)
    store = store_of(home)
    write = _export_of(home, store, name, how)
    target = target.expanduser().absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"export: {target} is there already; name a folder that is not, or one that is empty")
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        write(part)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    if target.exists():
        target.rmdir()
    part.rename(target)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"{target}: {size / 2**20:.1f} MiB, a folder in Hugging Face layout")


def _export_of(home: Home, store: ArtifactStore, name: str, how: Exported) -> Callable[[Path], object]:
    """What writes the folder: a copy, or a conversion of the checkpoint in the precision that is asked for."""
    precision = how.precision
    given = Path(name).expanduser()
    if not is_training_checkpoint(given):
        if how.base or how.tag:
            raise ConfigError(
                f"export: --base and --tag are for a folder that is a training checkpoint, and '{name}' is none; leave them out"
            )
        model = find_model(home, store, name)
        if how.dtype is None:
            source = model.folder(store)
            return lambda part: shutil.copytree(source, part, ignore=shutil.ignore_patterns(MANIFEST_FILE, EVENTS_FILE))
        inputs = model.manifest.inputs if model.manifest else {}
        if not {"checkpoint", "base"} <= inputs.keys():
            raise ConfigError(f"export: '{name}' was not trained here, so it has the precision that it has; leave --dtype out")
        checkpoint, base = (store.fetch(inputs[what].kind, inputs[what].key) for what in ("checkpoint", "base"))
        if checkpoint is None or base is None:
            raise ConfigError(
                f"export: the checkpoint of '{name}', or its base, is no longer in the store; run what made it again"
            )
        lineage = {what: ref.model_dump(exclude={"uri"}) for what, ref in inputs.items()}
        return partial(_convert, checkpoint, base, precision, lineage)
    if how.base is None:
        raise ConfigError(
            f"export: {given} is a training checkpoint; name the model that its training started from, as in --base MODEL"
        )
    base = find_model(home, store, how.base).folder(store)
    if (given / POLICY_NAME).is_file():
        if how.tag:
            raise ConfigError(f"export: --tag is for checkpoints of other trainers; {given} holds one step, leave it out")
        return partial(_convert, given, base, precision, {})
    return partial(_from_zero, given, base, precision, how.tag)


def _convert(checkpoint: Path, base: Path, dtype: Dtype, lineage: dict[str, Any], part: Path) -> None:
    from rlhf_core.engine.convert import convert_checkpoint

    convert_checkpoint(checkpoint, base, part, ConvertConfig(dtype=dtype), lineage)


def _from_zero(checkpoint: Path, base: Path, dtype: Dtype, tag: str | None, part: Path) -> None:
    from rlhf_core.engine.zero_folder import export_zero

    export_zero(checkpoint, base, part, dtype=dtype, tag=tag)


def _facts(store: ArtifactStore, model: NamedModel) -> Iterator[tuple[str, str]]:
    manifest = model.manifest
    if manifest is None:
        folder = model.folder(store)
        yield "folder", str(folder)
        yield "size", f"{sum(path.stat().st_size for path in folder.iterdir() if path.is_file()) / 2**20:.1f} MiB"
        yield "model", _architecture(folder / "config.json")
        return
    yield "folder", store.uri(manifest) if store.address else str(model.folder(store))
    yield "size", f"{manifest.size / 2**20:.1f} MiB in {len(manifest.files)} files"
    if config := store.fetch_file(manifest.kind, manifest.key, "config.json"):
        yield "model", _architecture(config)
    yield "key", manifest.key
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(manifest.finished_at))
    yield "made", f"{when} by {manifest.producer.run}/{manifest.producer.node} in {manifest.seconds:.1f} s"
    if manifest.adopted:
        yield "adopted", f"from {manifest.adopted.key[:12]}, over changes of {', '.join(manifest.adopted.changed)}"
    for what, value in manifest.summary.items():
        yield what, str(value)


def _architecture(config: Path) -> str:
    values: dict[str, Any] = json.loads(config.read_text(encoding="utf-8"))
    layers = values.get("num_hidden_layers", values.get("n_layer", "?"))
    names = values.get("architectures") or [values.get("model_type", "unknown")]
    return f"{', '.join(names)}, {layers} layers, vocabulary {values.get('vocab_size', '?')}"


def _lineage(store: ArtifactStore, manifest: Manifest, depth: int) -> Iterator[str]:
    for name, ref in manifest.inputs.items():
        yield f"{'  ' * depth}{name}: {ref.kind} {ref.key[:12]}, made by {ref.producer}"
        if found := store.manifest(ref.kind, ref.key):
            yield from _lineage(store, found, depth + 1)


def _metrics(model: NamedModel) -> Iterator[str]:
    """What the comparison of the run that the model was found by measured of it."""
    verdict = model.run.read_verdict() if model.run else None
    measured = verdict["models"].get(model.entry, {}) if verdict else {}
    if model.run and measured:
        yield f"measured in {model.run.name}"
    for decoding, metrics in measured.items():
        for metric, interval in metrics.items():
            yield f"  {metric} ({decoding}): {interval['mean']:.4g} [{interval['low']:.4g}, {interval['high']:.4g}]"
