"""Load models and tokenizers from folders in Hugging Face layout, and say before any work what is wrong with a folder."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data_processing.errors import ConfigError
from rlhf_core.config import Dtype

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
WEIGHT_PATTERNS = ("*.safetensors", "pytorch_model*.bin")
POSITION_FIELDS = ("max_position_embeddings", "n_positions", "max_sequence_length")


def check_model_folder(path: Path, *, trust_remote_code: bool = False, max_length_tokens: int | None = None) -> None:
    """Raise `ConfigError` unless `path` holds a model that can be loaded and is long enough; reads no weights."""
    if not path.is_dir():
        raise ConfigError(f"model folder '{path}' does not exist; give a folder in Hugging Face layout")
    config_file = path / "config.json"
    if not config_file.is_file():
        raise ConfigError(f"model folder '{path}' has no config.json; give a folder in Hugging Face layout")
    if not any(file for pattern in WEIGHT_PATTERNS for file in path.glob(pattern)):
        raise ConfigError(f"model folder '{path}' has no weights: neither of {', '.join(WEIGHT_PATTERNS)} is there")
    config = _read_config(config_file)
    if "auto_map" in config and not trust_remote_code:
        raise ConfigError(
            f"model folder '{path}' brings its own Python code (auto_map in config.json); "
            "set model.trust_remote_code=true if you trust it, or use a model that transformers knows"
        )
    check_positions(path, config, max_length_tokens)
    check_torchvision()


def check_positions(path: Path, config: dict[str, Any], max_length_tokens: int | None) -> None:
    """Raise `ConfigError` where sequences of `max_length_tokens` are longer than the positions the model has."""
    positions = next((config[name] for name in POSITION_FIELDS if config.get(name)), None)
    if max_length_tokens is not None and positions is not None and max_length_tokens > positions:
        raise ConfigError(
            f"max_length_tokens={max_length_tokens} is more than the {positions} positions of the model in '{path}'; "
            f"set it to at most {positions}"
        )


def check_torchvision() -> None:
    """Raise `ConfigError` where a torchvision beside torch cannot be imported: transformers would fail obscurely."""
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        import torchvision  # type: ignore[import-not-found,unused-ignore] # noqa: F401
    except Exception as error:
        raise ConfigError(
            f"torchvision is installed but cannot be imported beside torch {torch.__version__}: {error}; "
            "uninstall it (text models do not need it) or install the build that belongs to this torch"
        ) from error


def load_tokenizer(path: Path, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model folder; one without a pad token pads with its end-of-sequence token."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(path), trust_remote_code=trust_remote_code)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_lm(path: Path, *, dtype: Dtype, attention: str, trust_remote_code: bool = False) -> Any:
    """The causal language model of a folder, in `dtype`, in training mode. Missing weights are an error."""
    from transformers import AutoModelForCausalLM

    check_model_folder(path, trust_remote_code=trust_remote_code)
    model, info = AutoModelForCausalLM.from_pretrained(
        str(path),
        dtype=DTYPES[dtype],
        attn_implementation=attention,
        trust_remote_code=trust_remote_code,
        output_loading_info=True,
    )
    _refuse_missing(path, info["missing_keys"])
    return model.train()


def load_scorer(path: Path, *, dtype: Dtype, attention: str, new_head: bool, trust_remote_code: bool = False) -> Any:
    """A model with a scalar head named `score`, in `dtype`, in training mode.

    `new_head` puts a zero head (every score 0) on the backbone of a language model; otherwise the folder must hold one.
    """
    from transformers import AutoModelForSequenceClassification

    check_model_folder(path, trust_remote_code=trust_remote_code)
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            str(path),
            num_labels=1,
            dtype=DTYPES[dtype],
            attn_implementation=attention,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    except ValueError as error:
        raise ConfigError(f"model in '{path}' cannot carry a reward head: {str(error).splitlines()[0]}") from error
    head = getattr(model, "score", None)
    if not isinstance(head, nn.Linear):
        raise ConfigError(
            f"model in '{path}' ({type(model).__name__}) has no linear head named 'score'; choose a decoder-only model"
        )
    missing = set(info["missing_keys"]) - ({"score.weight"} if new_head else set())
    _refuse_missing(path, missing)
    if new_head:
        nn.init.zeros_(head.weight)
    return model.train()


def _refuse_missing(path: Path, missing: Any) -> None:
    if missing:
        raise ConfigError(
            f"model folder '{path}' lacks the weights {sorted(missing)[:5]}: they would be random; use a complete folder"
        )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"'{path}' is not JSON: {error}") from error
    return config
