"""Stage base_model: the model the pipeline starts from, through the gate, with its chat template and what it renders with decided.

A local folder stays where it is: the artifact links to its files, and their hashes are in the manifest. What the gate mends is
written into the artifact alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_processing.errors import ConfigError
from rlhf_core.batching.chat_templates import read_template
from rlhf_core.batching.rendering import write_rendering
from rlhf_core.models.folder import read_config
from rlhf_core.models.packaged import NAMES, fetch_named, made_of
from rlhf_core.models.weight_files import model_files, read_weight_files
from rlhf_core.settings.models import BaseModelConfig
from tasks.runtime.contract.context import Stage, StageContext
from tasks.runtime.contract.home import Home
from tasks.runtime.keys.file_hashes import HashCache

if TYPE_CHECKING:
    from rlhf_core.models.gate import Examined


_BESIDE_TOKENIZERS = ("added_tokens.json", "special_tokens_map.json", "chat_template.json")


def run(context: StageContext[BaseModelConfig]) -> None:
    """Take the model through the gate, link its files into the artifact, and write what was mended in place of the links."""
    from rlhf_core.models.gate import examine

    config = context.config
    context.events.progress(0, 2, f"base model {config.path}")
    folder = source_folder(config)
    seen = examine(folder, config)
    for path in model_files(folder):
        (context.output / path.name).symlink_to(path.resolve())
    _write_mended(seen, folder, context.output)
    for note in seen.notes:
        context.events.warn(note)
    context.events.progress(1, 2, "weights and config in place")
    refused = {"template_refuses": ", ".join(seen.rendering.refuses)} if seen.rendering.refuses else {}
    context.events.summary({"model": config.path, "files": len(list(context.output.iterdir())), **refused})
    context.events.progress(2, 2, "base model ready")


def _write_mended(seen: Examined, folder: Path, output: Path) -> None:
    """What differs from the user's files, written beside the links to them, never through them."""
    from rlhf_core.models.bin_weights import convert_bin

    write_rendering(seen.rendering, output)
    weights = read_weight_files(folder)
    if weights.is_bin:
        for path in (*weights.files, *([weights.index] if weights.index else [])):
            (output / path.name).unlink()
        convert_bin(weights, output)
    if seen.tokenizer_changed:
        # Written into the model, so that whoever loads what is trained from it renders as training did. What earlier versions
        # kept beside a tokenizer would be put on top of it again.
        for name in _BESIDE_TOKENIZERS:
            (output / name).unlink(missing_ok=True)
        _replace(output, seen.tokenizer.save_pretrained)
    if seen.config:
        changed = {**read_config(folder), **seen.config}
        _replace(output, lambda made: (made / "config.json").write_text(json.dumps(changed, indent=2), encoding="utf-8"))
    if seen.generation is not None:
        _replace(output, seen.generation.save_pretrained)


def source_folder(config: BaseModelConfig) -> Path:
    """The folder that holds the model: that of a named one (fetched or made if it is not there yet), or the local path."""
    folder = Path(config.path).expanduser()
    if folder.is_dir():
        return folder
    if config.path in NAMES:
        return fetch_named(config.path, Home.open().models)
    raise ConfigError(
        f"model.path '{config.path}' is neither a folder nor the name of a model ({', '.join(NAMES)}); "
        "give a folder in Hugging Face layout (config.json, *.safetensors, tokenizer files)"
    )


def fingerprint(config: BaseModelConfig) -> Any:
    """What the model is made of: the pinned hash of a packaged model, or name and sha256 of each file of the folder.

    A chat template that the settings name rather than spell out is part of it.
    """
    template = config.chat_template and read_template(config.chat_template)
    if template != config.chat_template:
        return {"model": _files(config), "chat_template": template}
    return _files(config)


def _files(config: BaseModelConfig) -> Any:
    folder = Path(config.path).expanduser()
    if not folder.is_dir() and config.path in NAMES:
        return made_of(config.path)
    return files_of(source_folder(config))


def files_of(folder: Path) -> dict[str, str]:
    """sha256 of each file of a model folder, by name; those that have not changed since are not read again."""
    folder = folder.resolve()
    hashes = HashCache(Home.open(to_read=True).models / "hashes.json", trust=True)
    files = {path.name: hashes.sha256(str(path), path) for path in model_files(folder)}
    with suppress(OSError):  # in a home that is only looked at they are hashed every time
        hashes.save()
    return files


def _replace(output: Path, write: Callable[[Path], object]) -> None:
    """Put what `write` writes into a folder in place of the links of the same names."""
    made = output / ".made"
    made.mkdir()
    write(made)
    for path in made.iterdir():
        (output / path.name).unlink(missing_ok=True)
        path.rename(output / path.name)
    made.rmdir()


STAGE = Stage(
    name="base_model",
    kind="model",
    role="policy",
    config=BaseModelConfig,
    run=run,
    libraries=("transformers",),
    fingerprint=fingerprint,
)
