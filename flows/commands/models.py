"""Commands about a model that is there: what it is, a copy of it, a conversation with it."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_processing.errors import ConfigError
from flows.commands.named_models import NamedModel, find_model
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


def export_model(name: str, target: Path) -> None:
    """`alignflow export MODEL DIR`: the model folder, with no links in it; there all at once, or not at all."""
    home = Home.open(to_read=True)
    store = store_of(home)
    source = find_model(home, store, name).folder(store)
    target = target.expanduser().absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"export: {target} is there already; name a folder that is not, or one that is empty")
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(source, part, ignore=shutil.ignore_patterns(MANIFEST_FILE, EVENTS_FILE))
    if target.exists():
        target.rmdir()
    part.rename(target)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"{target}: {size / 2**20:.1f} MiB, a folder in Hugging Face layout")


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
