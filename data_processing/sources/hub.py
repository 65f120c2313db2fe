"""Rows of Hugging Face datasets by name, through the datasets library and its cache."""

from __future__ import annotations

from collections.abc import Iterator

from data_processing.config import TableSource
from data_processing.errors import ConfigError, DataError
from data_processing.sources.files import RawRow


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
