"""Which store a home has: its own folder, or the one that `ALIGNFLOW_STORE` names.

ALIGNFLOW_STORE       a folder, s3://bucket/prefix, gs://bucket/prefix, or another address of fsspec
ALIGNFLOW_CACHE       folder of this disk for copies of what is kept at an address; default: `cache` in the home
ALIGNFLOW_CACHE_GIB   how much is kept there, beside what is in use; default 200
"""

from __future__ import annotations

import os
from pathlib import Path

from data_processing.errors import ConfigError
from data_processing.wording import path_of
from tasks.runtime.contract.home import Home
from tasks.runtime.store.artifacts import Store
from tasks.runtime.store.base import ArtifactStore

_CACHE_GIB = 200.0


def store_of(home: Home) -> ArtifactStore:
    """The store of a home. Raises `ConfigError` for an address or a size that cannot be."""
    given = os.environ.get("ALIGNFLOW_STORE")
    if not given:
        return Store(home.store)
    if given.startswith("file://") or "://" not in given:
        folder = path_of(given) if "://" in given else Path(given)
        return Store(folder.expanduser().resolve())
    cache = os.environ.get("ALIGNFLOW_CACHE")
    return open_store(Path(cache).expanduser().resolve() if cache else home.cache, given)


def open_store(root: Path, address: str | None) -> ArtifactStore:
    """The store in folder `root`; where there is an `address`, the one there, with its cache in `root`."""
    if address is None:
        return Store(root)
    from tasks.runtime.store.remote import RemoteStore

    return RemoteStore(address, root, int(_cache_gib() * 2**30))


def _cache_gib() -> float:
    text = os.environ.get("ALIGNFLOW_CACHE_GIB") or str(_CACHE_GIB)
    try:
        gib = float(text)
    except ValueError:
        gib = -1.0
    if not 0 <= gib < float("inf"):
        raise ConfigError(f"ALIGNFLOW_CACHE_GIB: got '{text}'; give a number of GiB, 0 or more, for example {_CACHE_GIB:g}")
    return gib
