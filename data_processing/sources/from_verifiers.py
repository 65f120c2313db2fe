"""Rows of the data set that an environment of the library verifiers brings along: its prompts, with what its rewards need of each."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import sys
from collections.abc import Iterator
from typing import Any

from data_processing.apart import lines_of
from data_processing.config import TableSource
from data_processing.errors import ConfigError
from data_processing.libraries import distribution_of, environment_module
from data_processing.sources.files import RawRow

_LIBRARY = "verifiers"


def version_of_environment(source: TableSource, field: str) -> str:
    """The versions of the library and of the environment, which another one may have other rows than. Raises `ConfigError` without them."""
    try:
        library = importlib.metadata.version(_LIBRARY)
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError(
            f"{field}: kind 'verifiers' needs {_LIBRARY}, which is not installed: pip install \"alignflow[verifiers]\""
        ) from None
    module = environment_module(source.path)
    if importlib.util.find_spec(module) is None:
        raise ConfigError(
            f"{field}: there is no module '{module}' for the environment '{source.path}'; install it, or start from the "
            "folder that it lies in"
        )
    distribution = distribution_of(module)
    own = f", {distribution} {importlib.metadata.version(distribution)}" if distribution else ""
    installed = f"{_LIBRARY} {library}{own}"
    if source.revision not in (None, installed):
        raise ConfigError(
            f"{field}: the rows are those of {source.revision}, and {installed} is installed, which may have others; install that, or "
            "remove the revision"
        )
    return installed


def read_environment(source: TableSource, field: str) -> Iterator[RawRow]:
    """The rows, numbered from 1, as the library's rewards are given them. Raises what `version_of_environment` does."""
    version_of_environment(source, field)
    failed = f"{field}: the data set of the environment '{source.path}' with options {source.options} cannot be read: "
    for number, line in enumerate(lines_of(__name__, source.model_dump_json(), failed), 1):
        yield RawRow(f"{source.path} row", number, json.loads(line))


def main(source: TableSource) -> None:
    """Write the rows, a line each."""
    import verifiers

    lines = sys.stdout
    # What an environment prints is no row.
    sys.stdout = sys.stderr
    environment = verifiers.load_environment(source.path, **source.options)
    for row in environment.get_dataset(n=source.max_rows or -1, seed=source.seed):
        lines.write(json.dumps(_told(row), ensure_ascii=False) + "\n")


def _told(row: dict[str, Any]) -> dict[str, Any]:
    info = row.get("info")
    told = {name: row[name] for name in ("prompt", "answer", "task", "example_id") if row.get(name) is not None}
    if info is not None:
        given = json.loads(info) if isinstance(info, str) else info
        told["info"] = json.dumps(given, ensure_ascii=False, default=str)
        if given.get("oai_tools"):
            told["tools"] = json.dumps(given["oai_tools"], ensure_ascii=False)
    return told


if __name__ == "__main__":
    main(TableSource.model_validate_json(sys.argv[1]))
