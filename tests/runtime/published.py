"""A small artifact, and ways to publish it."""

from __future__ import annotations

import time
from pathlib import Path

from tasks.runtime.contract.spec import Producer
from tasks.runtime.store.artifacts import Store
from tasks.runtime.store.manifest import Manifest

KIND, KEY = "numbers", "k" * 64


def staged(store: Store, text: str = "hello", attempt: int = 1, key: str = KEY) -> Path:
    staging = store.staging(KIND, key, attempt)
    (staging / "a.txt").write_text(text)
    (staging / "sub").mkdir()
    (staging / "sub" / "b.bin").write_bytes(b"\0" * 1000)
    return staging


def manifest_of(store: Store, staging: Path, attempt: int = 1, key: str = KEY) -> Manifest:
    files, content = store.describe_files(KIND, key, staging)
    producer = Producer(run="run", node="node", stage="count", attempt=attempt)
    return Manifest(
        kind=KIND,
        key=key,
        sha256=content,
        files=files,
        producer=producer,
        inputs={},
        description={},
        seconds=1.0,
        summary={},
        finished_at=time.time(),
    )


def publish(store: Store, text: str = "hello", attempt: int = 1, key: str = KEY) -> Manifest:
    staging = staged(store, text, attempt, key)
    manifest = manifest_of(store, staging, attempt, key)
    store.publish(staging, manifest)
    return manifest
