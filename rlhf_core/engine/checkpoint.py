"""Checkpoint folders that are whole or not there: a temporary name, a manifest with hashes written last, one rename."""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_processing.file_hash import file_sha256
from rlhf_core.engine.distributed import barrier, rank

MANIFEST_NAME = "manifest.json"
STATE_NAME = "state.json"
KEPT_CHECKPOINTS = 2

logger = logging.getLogger(__name__)


def write_checkpoint(folder: Path, write: Callable[[Path], None], facts: dict[str, Any]) -> None:
    """Let every rank `write` into one new folder, which then appears as `folder`; all but the newest two beside it go.

    `facts` are kept in the manifest; "step" among them orders checkpoints. A folder of that name is replaced. Collective.
    """
    part = folder.with_name(f".{folder.name}.part")
    if rank() == 0:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    barrier()
    write(part)
    barrier()
    if rank() == 0:
        _write_manifest(part, facts)
        _replace(part, folder)
        for old in _by_age(folder.parent)[KEPT_CHECKPOINTS:]:
            shutil.rmtree(old)
    barrier()


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The facts of a whole checkpoint; None where the folder is no checkpoint, or a file of it is missing or altered."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
        files: dict[str, str] = manifest["files"]
        whole = all(file_sha256(folder / name) == digest for name, digest in files.items())
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return manifest["facts"] if whole else None


def latest_checkpoint(resume_dir: Path) -> Path | None:
    """The newest whole checkpoint directly below `resume_dir`, or None; damaged ones are passed over with a warning."""
    for folder in _by_age(resume_dir):
        if read_manifest(folder) is not None:
            return folder
        logger.warning("checkpoint %s is damaged (a file is missing or altered): taking the one before it", folder)
    return None


def random_state(device: torch.device) -> dict[str, Any]:
    """States of every generator that training on `device` draws from in this process."""
    cuda = torch.cuda.get_rng_state() if device.type == "cuda" else None
    return {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state(), "cuda": cuda}


def set_random_state(state: dict[str, Any]) -> None:
    """Undo everything drawn since `random_state` gave `state`."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"])


def _by_age(resume_dir: Path) -> list[Path]:
    """Folders with a manifest, the one with the most steps first."""
    found: list[tuple[int, float, Path]] = []
    for manifest in resume_dir.glob(f"*/{MANIFEST_NAME}"):
        if manifest.parent.name.startswith("."):
            continue
        try:
            step = int(json.loads(manifest.read_text(encoding="utf-8"))["facts"]["step"])
        except (OSError, ValueError, KeyError, TypeError):
            logger.warning("checkpoint %s has an unreadable manifest: ignoring it", manifest.parent)
            continue
        found.append((step, manifest.stat().st_mtime, manifest.parent))
    return [folder for *_, folder in sorted(found, reverse=True)]


def _write_manifest(part: Path, facts: dict[str, Any]) -> None:
    files = sorted(path for path in part.rglob("*") if path.is_file())
    for path in files:
        _fsync(path)
    manifest = {"facts": facts, "files": {str(path.relative_to(part)): file_sha256(path) for path in files}}
    (part / MANIFEST_NAME).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    _fsync(part / MANIFEST_NAME)
    for directory in (part, *(path for path in part.rglob("*") if path.is_dir())):
        _fsync(directory)


def _replace(part: Path, folder: Path) -> None:
    if folder.exists():
        # A rename cannot replace a full folder. Between the two renames the checkpoint before this one still stands.
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
        part.rename(folder)
        shutil.rmtree(old)
    else:
        part.rename(folder)
    _fsync(folder.parent)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
