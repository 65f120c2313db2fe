"""Which local files a source names, which of those it finds are no data, and their fingerprint. Knows nothing about their content."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from data_processing.config import TableSource
from data_processing.errors import ConfigError
from data_processing.file_hash import file_sha256

# Types of data files by their endings; several endings may mean one type.
TYPES = {"parquet": "parquet", "jsonl": "jsonl", "ndjson": "jsonl", "json": "json", "csv": "csv", "arrow": "arrow", "tar": "tar"}
TYPES |= {"txt": "txt", "tgz": "tar"}
COMPRESSIONS = {"gz": "gzip", "zst": "zstd"}
_COMPRESSED_TYPES = frozenset({"jsonl", "json", "csv", "tar", "txt"})
_NO_DATA_FOLDERS = frozenset({"__MACOSX", "__pycache__"})
# What the datasets library writes beside the data of a saved data set.
_STATE, _SPLITS = "state.json", "dataset_dict.json"
_OF_SAVED = frozenset({_STATE, _SPLITS, "dataset_info.json"})


class Found(NamedTuple):
    """The files of a source in their order, and what lies beside them and is no data."""

    files: list[Path]
    passed_over: list[str] = []  # noqa: RUF012 - a named tuple's default, never changed


def found_files(source: TableSource, field: str) -> Found:
    """The files that a source's path (file, folder, saved data set or data_type@dir) names; raises `ConfigError` naming `field`."""
    path = Path(source.path).expanduser()
    data_type, at, folder = source.path.partition("@")
    if (path / _SPLITS).is_file():
        return _split_of_saved(path, source.split, field)
    if source.split != type(source).model_fields["split"].default:
        raise ConfigError(
            f"{field}: split '{source.split}' is for Hugging Face datasets and folders of save_to_disk with splits, and "
            f"'{source.path}' is neither; remove the split, or name the file of that split"
        )
    if at and not path.exists():
        if data_type not in TYPES:
            raise ConfigError(f"{field}: unknown data type '{data_type}' in '{source.path}'; allowed: {', '.join(TYPES)}")
        return _below(Path(folder).expanduser(), TYPES[data_type], field)
    if path.is_dir():
        return _saved(path, field) if (path / _STATE).is_file() else _below(path, None, field)
    if path.is_symlink() and not path.exists():
        raise _dangling(path, field)
    if not path.is_file():
        raise ConfigError(
            f"{field}: no file or folder at '{source.path}'; give a path that exists, or set the source's kind to 'huggingface'"
        )
    if data_type_of(path) is None:
        raise ConfigError(f"{field}: '{source.path}' ends in none of {_endings()}; convert it")
    return Found([path])


def data_type_of(file: Path) -> str | None:
    """The type of a data file by its ending, for example "jsonl" for a.ndjson.gz; None for files of other types."""
    endings = [ending.lower().removeprefix(".") for ending in file.suffixes[-2:]]
    if endings and endings[-1] in COMPRESSIONS:
        inner = TYPES.get(endings[0]) if len(endings) > 1 else None
        return inner if inner in _COMPRESSED_TYPES else None
    return TYPES.get(endings[-1]) if endings else None


def compression_of(file: Path) -> str | None:
    """How a data file is compressed: gzip, zstd, or None for not at all."""
    ending = file.suffix.lower().removeprefix(".")
    return "gzip" if ending == "tgz" else COMPRESSIONS.get(ending)


def file_fingerprint(source: TableSource, field: str) -> list[dict[str, Any]]:
    """Name, size in bytes and sha256 of every file that a source names."""
    return [{"name": f.name, "bytes": f.stat().st_size, "sha256": file_sha256(f)} for f in found_files(source, field).files]


def _below(folder: Path, wanted: str | None, field: str) -> Found:
    """The data files below a folder, of one type; texts (.txt) count as data only where there is nothing else."""
    if not folder.is_dir():
        raise ConfigError(f"{field}: no folder at '{folder}'; give one that exists")
    hidden: list[str] = []
    by_type: dict[str | None, list[Path]] = {}
    for file in _walk(folder, folder, hidden, set()):
        by_type.setdefault(data_type_of(file), []).append(file)
    others = by_type.pop(None, [])
    if wanted is None and len(by_type) > 1:
        others += by_type.pop("txt", [])
    elif wanted is not None:
        others += [file for data_type, files in by_type.items() if data_type != wanted for file in files]
        by_type = {wanted: by_type[wanted]} if wanted in by_type else {}
    if len(by_type) > 1:
        found = sorted(str(data_type) for data_type in by_type)
        raise ConfigError(
            f"{field}: '{folder}' holds files of several types ({', '.join(found)}); name one, for example {found[0]}@{folder}"
        )
    files = sorted(file for files in by_type.values() for file in files)
    if not files:
        beside = f" ({', '.join(sorted(file.name for file in others)[:5])} end otherwise)" if others else ""
        raise ConfigError(f"{field}: no file of type {wanted or _endings()} below '{folder}'{beside}; check the folder")
    if dangling := next((file for file in files if not file.exists()), None):
        raise _dangling(dangling, field)
    return Found(files, [*hidden, *sorted(str(file.relative_to(folder)) for file in others)])


def _walk(folder: Path, top: Path, hidden: list[str], seen: set[Path]) -> Iterator[Path]:
    """All files below a folder, linked folders included (each once), without hidden ones and those of caches."""
    seen.add(folder.resolve())
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith(".") or entry.name in _NO_DATA_FOLDERS:
            hidden.append(str(entry.relative_to(top)))
        elif not entry.is_dir():
            yield entry
        elif entry.resolve() not in seen:
            yield from _walk(entry, top, hidden, seen)


def _split_of_saved(folder: Path, split: str, field: str) -> Found:
    splits = _read_json(folder / _SPLITS, field).get("splits", [])
    if split not in splits:
        raise ConfigError(f"{field}: '{folder}' has no split '{split}'; set the source's split to one of {', '.join(splits)}")
    return Found(_saved(folder / split, field).files, [name for name in splits if name != split])


def _saved(folder: Path, field: str) -> Found:
    """The files of a data set that `save_to_disk` wrote; what it holds of others is not read."""
    listed = _read_json(folder / _STATE, field).get("_data_files", [])
    files = [folder / file["filename"] for file in listed]
    if gone := next((file for file in files if not file.is_file()), None):
        raise ConfigError(f"{field}: {folder / _STATE} names {gone.name}, which is not there; save the data set again")
    known = {file.name for file in files} | _OF_SAVED
    return Found(files, sorted(entry.name for entry in folder.iterdir() if entry.name not in known))


def _read_json(file: Path, field: str) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{field}: {file} cannot be read ({error}); save the data set again") from error
    return content


def _dangling(file: Path, field: str) -> ConfigError:
    return ConfigError(f"{field}: {file} is a link to {file.readlink()}, which is not there; fetch it or remove the link")


def _endings() -> str:
    return ", ".join(f".{ending}" for ending in TYPES) + " (also compressed: .gz, .zst)"
