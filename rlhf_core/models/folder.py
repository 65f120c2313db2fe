"""What a model folder must have before it is loaded, from its config and the headers of its weights; without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data_processing.errors import ConfigError
from rlhf_core.models.weight_files import read_weight_files

TOKENIZER_NAMES = ("tokenizer.json", "tokenizer_config.json")
POSITION_FIELDS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len")
ADAPTER_NAME = "adapter_config.json"


def check_model_folder(path: Path, *, trust_remote_code: bool = False, max_length_tokens: int | None = None) -> None:
    """Raise `ConfigError` unless `path` is a complete Hugging Face folder that can be loaded and is long enough.

    `max_length_tokens` is the longest sequence that will be run; None skips that check. Reads no weights. Whether weights,
    config, tokenizer and template fit together is seen once, when a model is taken in (`gate.examine`).
    """
    check_loadable(path, trust_remote_code)
    if not any((path / name).is_file() for name in TOKENIZER_NAMES):
        raise ConfigError(f"model folder {path} has no tokenizer ({' or '.join(TOKENIZER_NAMES)}): save one into it")
    positions = max_positions(path)
    if max_length_tokens is not None and positions is not None and max_length_tokens > positions:
        raise ConfigError(
            f"max_length_tokens={max_length_tokens} is more than the {positions} positions of model {path}: "
            f"set it to at most {positions} or choose a model with more"
        )


def check_loadable(path: Path, trust_remote_code: bool) -> None:
    """Raise `ConfigError` for a folder that transformers would not load, or would load as something else than it seems."""
    config = read_config(path)
    if (path / ADAPTER_NAME).is_file():
        raise ConfigError(
            f"model folder {path} holds {ADAPTER_NAME}, and its adapter would be put on top of the weights: remove the adapter's "
            "files if the weights have it merged in; else merge it (peft: merge_and_unload) and save the result"
        )
    read_weight_files(path)
    if (brought := config.get("auto_map")) and not trust_remote_code:
        names = ", ".join(sorted(brought)) if isinstance(brought, dict) else brought
        raise ConfigError(
            f"model folder {path} brings its own Python code ({names}) and trust_remote_code is "
            "false: read that code, then set model.trust_remote_code to true, or choose a model that transformers knows"
        )


def max_positions(path: Path) -> int | None:
    """The longest sequence (tokens) that the model in folder `path` has positions for; None where its config has no limit."""
    config = read_config(path)
    for values in (config, config.get("text_config") or {}):
        for name in POSITION_FIELDS:
            if isinstance(values.get(name), int):
                return int(values[name])
    return None


def read_config(path: Path) -> dict[str, Any]:
    """The config.json of a model folder; raises `ConfigError` where there is none that can be read."""
    if not path.is_dir():
        raise ConfigError(f"model folder {path} does not exist: give a folder in Hugging Face layout")
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model folder {path} has no readable config.json ({error}): give a folder in Hugging Face layout"
        ) from error
    if not isinstance(config, dict):
        raise ConfigError(f"model folder {path}: config.json is {type(config).__name__}, not a mapping; copy it again")
    return config
