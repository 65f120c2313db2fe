"""Taking a result over under a new key, when a person says that a change of code or of a library does not matter to it.

The artifact is linked, not computed; its manifest says from which key it was taken and what differed, so that the lineage
stays true. A change of settings, inputs or seed is never taken over.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from data_processing.errors import ConfigError
from tasks.runtime.contract.context import ArtifactRef
from tasks.runtime.keys.stage_key import StageKey, explain_difference
from tasks.runtime.store.artifacts import Store, reference
from tasks.runtime.store.manifest import Adoption, Manifest

# What of a key's description may differ.
_MAY_DIFFER = ("code.", "user_code.", "libraries.")


def adopt(store: Store, key: StageKey, old: Manifest, inputs: Mapping[str, Manifest]) -> ArtifactRef:
    """Publish the artifact of `old` under `key`; `inputs` are those of the new key, by name.

    Raises `ConfigError` where more differs than code and libraries. An input with another key will do where it was itself
    adopted from the one that `old` was made from.
    """
    changed = explain_difference(old.description, key.description)
    if blocking := [line for line in changed if not line.startswith(_MAY_DIFFER) and not _is_adopted_input(line, old, inputs)]:
        raise ConfigError(
            f"adopt: {old.kind} {old.key[:12]} of {old.producer.run}/{old.producer.node} differs in more than code: "
            f"{'; '.join(blocking)}; only a change of code or of library versions can be taken over: run the node"
        )
    staging = store.staging(old.kind, key.key, 0)
    for entry in old.files:
        _link(store.folder(old.kind, old.key) / entry.path, staging / entry.path)
    adoption = Adoption(key=old.key, changed=[line.partition(":")[0] for line in changed], at=time.time())
    refs = {name: reference(store, made) for name, made in inputs.items()}
    updates = {"key": key.key, "description": key.description, "inputs": refs, "adopted": adoption}
    return store.publish(staging, old.model_copy(update=updates))


def _is_adopted_input(line: str, old: Manifest, inputs: Mapping[str, Manifest]) -> bool:
    name = line.partition(":")[0].removeprefix("inputs.")
    made = inputs.get(name)
    return bool(line.startswith("inputs.") and made and made.adopted and made.adopted.key == old.description["inputs"].get(name))


def _link(source: Path, target: Path) -> None:
    """The same bytes under another name; a copy where the file system has no links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)
