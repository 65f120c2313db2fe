"""What a user may call a model: a key of the store, `RUN/ENTRY`, an entry of the latest run, a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data_processing.errors import ConfigError
from data_processing.wording import artifact_name, did_you_mean
from flows.running.run_folder import RunFolder, find_run, run_folders
from tasks.runtime.contract.home import Home
from tasks.runtime.store.base import ArtifactStore
from tasks.runtime.store.manifest import Manifest
from tasks.runtime.store.records import read_node

_KIND = "model"
_KEY_DIGITS = 6  # as many as names of artifacts show


@dataclass(frozen=True)
class NamedModel:
    """A model as a user called it: in the store, with its manifest and the run and entry it was found by, or a folder."""

    name: str
    manifest: Manifest | None = None
    run: RunFolder | None = None
    entry: str | None = None
    given: Path | None = None

    def folder(self, store: ArtifactStore) -> Path:
        """Where its files are on this disk; they are fetched where the store is elsewhere, and stay while `store` lives."""
        if self.given:
            return self.given
        found = store.fetch(_KIND, self.manifest.key) if self.manifest else None
        if found is None:
            raise ConfigError(f"model '{self.name}' is no longer whole in the store; run what made it again")
        return found


def find_model(home: Home, store: ArtifactStore, name: str) -> NamedModel:
    """The model called `name`. Raises `ConfigError` with the nearest names where there is none, or more than one."""
    folder = Path(name).expanduser()
    if (folder / "config.json").is_file():
        return NamedModel(name, given=folder.resolve())
    run, slash, entry = name.rpartition("/")
    if slash:
        return _of_run(store, home, find_run(home, run), entry, name)
    runs = run_folders(home)
    if runs and name in _entries(home, runs[0]):
        return _of_run(store, home, runs[0], name, name)
    keys = [m for m in store.manifests() if m.kind == _KIND and _is_called(m, name)]
    if len(keys) == 1:
        return NamedModel(name, keys[0])
    if keys:
        raise ConfigError(f"model: '{name}' are {len(keys)} models: {', '.join(m.key[:12] for m in keys)}; give more of the key")
    known = list(_entries(home, runs[0])) if runs else []
    raise ConfigError(
        f"model: got '{name}'; {did_you_mean(name, known)}give an entry of the latest run ({', '.join(known) or 'there is none'}), RUN/ENTRY, "
        "a key of alignflow cache ls, or a folder with a config.json"
    )


def _of_run(store: ArtifactStore, home: Home, run: RunFolder, entry: str, name: str) -> NamedModel:
    entries = _entries(home, run)
    if entry not in entries:
        known = ", ".join(entries) or f"none yet, it is {run.read_status().get('status', 'unknown')}"
        raise ConfigError(f"model: run {run.name} has no model '{entry}'; {did_you_mean(entry, entries)}it has {known}")
    manifest = store.manifest(_KIND, entries[entry])
    if manifest is None:
        raise ConfigError(f"model: {entry} of {run.name} is no longer in the store; {run.again}")
    return NamedModel(name, manifest, run, entry)


def _entries(home: Home, run: RunFolder) -> dict[str, str]:
    """Keys of the run's models by entry: a trained entry's is what its checkpoint was converted to."""
    nodes = sorted(path.stem for path in (run.path / "nodes").glob("*.json"))
    records = [
        record for node in nodes if (record := read_node(home, run.name, node)) and record.ref and record.ref.kind == _KIND
    ]
    return {record.node.removeprefix("convert_"): record.key for record in records}


def _is_called(manifest: Manifest, name: str) -> bool:
    by_key = len(name) >= _KEY_DIGITS and manifest.key.startswith(name)
    return by_key or name == artifact_name(manifest.producer.node, manifest.key)
