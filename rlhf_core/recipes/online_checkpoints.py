"""Checkpoints of an online run: the policy's and the critic's of one round belong together."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_processing.errors import ConfigError, DataError
from rlhf_core.engine.checkpoint import read_manifest

logger = logging.getLogger(__name__)


def checkpoint_folder(resume: Path, role: str, step: int) -> Path:
    """Where the state of `role` ("policy" or "critic") after `step` rounds is kept."""
    return resume / role / f"step-{step:06d}"


def latest_checkpoints(resume: Path, roles: Sequence[str]) -> dict[str, Path] | None:
    """The checkpoints of the newest round at which every role has a whole one, by role; None if there is no such round."""
    names = sorted((folder.name for folder in (resume / roles[0]).glob("step-*")), reverse=True)
    for name in names:
        folders = {role: resume / role / name for role in roles}
        if all(read_manifest(folder) is not None for folder in folders.values()):
            return folders
        logger.warning("checkpoint %s is damaged or incomplete: taking the round before it", name)
    return None


def check_same_run(state: Mapping[str, Any], identity: Mapping[str, Any], folder: Path) -> None:
    """Raise `DataError` or `ConfigError` where a checkpoint was made with other prompts or settings than this run has."""
    if state["prompts_sha256"] != identity["prompts_sha256"]:
        raise DataError(
            f"checkpoint {folder} was made with other prompts (table, chat template or tokenizer changed): "
            f"remove {folder.parent.parent} to start anew, or bring the data back"
        )
    before, now = state["settings"], identity["settings"]
    if before != now:
        changed = sorted(name for name in now if before.get(name) != now[name])
        raise ConfigError(
            f"checkpoint {folder} was made with other values of {changed}: remove {folder.parent.parent} or set them back"
        )
