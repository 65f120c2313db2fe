"""The weight files of a model folder: which are read, what their headers promise, and whether the files keep it.

Headers alone are read, so that a folder of any size is known in a moment. Importable without torch.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from data_processing.errors import ConfigError

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
WHOLE_BIN, INDEX_BIN = "pytorch_model.bin", "pytorch_model.bin.index.json"
_LFS = b"version https://git-lfs"
_LENGTH_BYTES = 8
_SHOWN = 4
# Weights in any format, and what belongs to them: none of it is taken along but what is read.
_WEIGHT_ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".msgpack", ".h5", ".onnx", ".gguf")
_INDEX_ENDINGS = tuple(f"{ending}.index.json" for ending in _WEIGHT_ENDINGS)


@dataclass(frozen=True)
class WeightFiles:
    """The weight files that are read from a folder, with their index where there are several.

    `shapes` by name of the tensor; None for files of PyTorch (`.bin`), whose names are not in a header.
    """

    files: tuple[Path, ...]
    index: Path | None
    shapes: Mapping[str, tuple[int, ...]] | None

    @property
    def is_bin(self) -> bool:
        """Whether these are files of PyTorch, which are converted before they are used."""
        return self.shapes is None


def read_weight_files(folder: Path) -> WeightFiles:
    """The weights that transformers reads from `folder`: safetensors where there are any, one file before several.

    Raises `ConfigError` for files that are missing, empty, cut off, or no weights at all.
    """
    if (folder / WHOLE).is_file() or (folder / INDEX).is_file():
        files, index = _files(folder, WHOLE, INDEX)
        shapes: dict[str, tuple[int, ...]] = {}
        for file in files:
            shapes |= _header(file)
        if index is not None and (lacking := sorted(_weight_map(index).keys() - shapes.keys())):
            raise ConfigError(f"{index} names weights that are in none of its files: {shown(lacking)}; copy the model again")
        return WeightFiles(files, index, shapes)
    if (folder / WHOLE_BIN).is_file() or (folder / INDEX_BIN).is_file():
        files, index = _files(folder, WHOLE_BIN, INDEX_BIN)
        for file in files:
            _check_pytorch(file)
        return WeightFiles(files, index, None)
    others = sorted(path.name for path in folder.iterdir() if path.name.endswith(_WEIGHT_ENDINGS))
    found = f"; {shown(others)} would not be read" if others else ""
    raise ConfigError(
        f"model folder {folder} has no weights ({WHOLE}, or {INDEX} and the files that it names){found}: "
        "save the model into it with save_pretrained, or choose another folder"
    )


def model_files(folder: Path) -> list[Path]:
    """The files of a model folder that belong to the model as it is read, by name; other formats are left behind."""
    weights = read_weight_files(folder)
    read = {*weights.files, *([weights.index] if weights.index else [])}
    present = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return [path for path in present if path in read or not path.name.endswith((*_WEIGHT_ENDINGS, *_INDEX_ENDINGS))]


def parameters_in(folder: Path) -> int | None:
    """How many values the weights of a folder hold; None where that cannot be told without loading them."""
    shapes = read_weight_files(folder).shapes
    return None if shapes is None else sum(math.prod(shape) for shape in shapes.values())


def shown(names: list[str]) -> str:
    """The first of some names, and how many more there are."""
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _files(folder: Path, whole: str, index_name: str) -> tuple[tuple[Path, ...], Path | None]:
    if (folder / whole).is_file():
        return (folder / whole,), None
    index = folder / index_name
    names = sorted(set(_weight_map(index).values()))
    if elsewhere := [name for name in names if Path(name).name != name]:
        raise ConfigError(f"{index} names files that are not beside it: {shown(elsewhere)}; put all weights into one folder")
    if absent := [name for name in names if not (folder / name).is_file()]:
        raise ConfigError(
            f"model folder {folder} lacks {len(absent)} of its {len(names)} weight files: {shown(absent)}; copy them again"
        )
    return tuple(folder / name for name in names), index


def _weight_map(index: Path) -> dict[str, str]:
    try:
        found = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {str(name): str(file) for name, file in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{index} is no index of weight files ({type(error).__name__}: {error}); copy it again") from error


def _header(file: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes in a safetensors file, which is as long as its header says."""
    size = _checked_size(file)
    with file.open("rb") as stream:
        start = stream.read(_LENGTH_BYTES)
    length = int.from_bytes(start, "little") if len(start) == _LENGTH_BYTES else size
    if length > size - _LENGTH_BYTES:
        raise ConfigError(f"{file} has {size:,} bytes, fewer than its header alone would take; copy or download it again")
    try:
        # Opening it maps the file and has the library that will load it check header and length; no tensor is read.
        with safe_open(file, framework="np") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ConfigError(
            f"{file} has {size:,} bytes and is no whole safetensors file ({error}); copy or download it again"
        ) from error


def _check_pytorch(file: Path) -> None:
    _checked_size(file)
    with file.open("rb") as stream:
        zipped = stream.read(2) == b"PK"
    # What torch saves is a zip archive with its directory at the end; before version 1.6 it was a bare pickle.
    if zipped and not zipfile.is_zipfile(file):
        raise ConfigError(f"{file} is cut off: its directory, at the end, is not there; copy or download it again")


def _checked_size(file: Path) -> int:
    """Bytes of a file that is neither empty nor a pointer to what is elsewhere."""
    size = file.stat().st_size
    if not size:
        raise ConfigError(f"{file} is empty; copy or download it again")
    with file.open("rb") as stream:
        if stream.read(len(_LFS)) == _LFS:
            raise ConfigError(f"{file} is a Git LFS pointer, not weights; run `git lfs pull` in that folder")
    return size
