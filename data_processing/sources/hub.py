"""Rows of Hugging Face datasets by name, through the datasets library and its cache."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from data_processing.config import TableSource
from data_processing.errors import ConfigError, DataError
from data_processing.sources.files import RawRow

_COMMIT = re.compile(r"[0-9a-f]{40}")
_ANSWER_LIMIT_S = 15.0


def commit_of(source: TableSource, field: str) -> str:
    """The commit that `source` names now: its revision is resolved by the hub, or, offline, by what the hub said last.

    Raises `ConfigError` where neither knows: without it a run could not tell new data from old.
    """
    import httpx
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    revision = source.revision or "main"
    if _COMMIT.fullmatch(revision):
        return revision
    if Path(source.path).expanduser().is_dir():
        raise ConfigError(f"{field}: '{source.path}' is a folder, and kind 'huggingface' takes names; set kind 'file'")
    try:
        api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
        found = api.dataset_info(source.path, revision=revision, timeout=_ANSWER_LIMIT_S).sha
    except (OSError, ValueError, httpx.HTTPError, HfHubHTTPError, OfflineModeIsEnabled) as error:
        known = Path(constants.HF_HUB_CACHE) / f"datasets--{source.path.replace('/', '--')}" / "refs" / revision
        if known.is_file():
            return known.read_text(encoding="utf-8").strip()
        raise ConfigError(
            f"{field}: cannot tell which commit revision '{revision}' of dataset '{source.path}' is: {error}. Check the name and "
            "the network, set revision to a commit of 40 digits, or download it and give the local files with kind 'file'"
        ) from error
    if found is None:
        raise ConfigError(f"{field}: the hub names no commit for dataset '{source.path}'; set revision to one")
    return found


def read_hub(source: TableSource, field: str) -> Iterator[RawRow]:
    """Rows of the named dataset and split, numbered from 1; raises `ConfigError` where it cannot be had."""
    import datasets

    try:
        dataset = datasets.load_dataset(source.path, name=source.subset, split=source.split, revision=source.revision)
    except datasets.exceptions.DatasetBuildError as error:
        raise DataError(f"{field}: dataset '{source.path}' cannot be built: {error}; check its files") from error
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ConfigError(
            f"{field}: cannot load split '{source.split}' of dataset '{source.path}' (subset {source.subset}, revision "
            f"{source.revision}): {error}. Check the names and the network, load it once online so that it is cached, "
            "or download it and give the local files with kind 'file'"
        ) from error
    for number, row in enumerate(dataset, 1):
        yield RawRow(f"{source.path} row", number, dict(row))
