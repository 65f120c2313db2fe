"""Model folders to models in memory, with every check that can be made before an hour of training is spent."""

from __future__ import annotations

import json
import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from data_processing.errors import ConfigError
from rlhf_core.precision import Dtype

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TORCH_DTYPES: dict[Dtype, torch.dtype] = {"bf16": torch.bfloat16, "fp32": torch.float32}
WEIGHT_PATTERNS = ("*.safetensors", "pytorch_model*.bin")
TOKENIZER_NAMES = ("tokenizer.json", "tokenizer_config.json")
POSITION_FIELDS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len")
HEAD_WEIGHT = "score.weight"
SCORER_CLASS = "AutoModelForSequenceClassification"
# Settings that make training mode random, under the names that configs have for them.
RANDOM = re.compile("dropout|pdrop|drop_?path|layer_?drop|drop_rate|jitter")


def check_model_folder(path: Path, *, trust_remote_code: bool = False, max_length_tokens: int | None = None) -> None:
    """Raise `ConfigError` unless `path` is a complete Hugging Face folder that can be loaded and is long enough.

    `max_length_tokens` is the longest sequence that will be run; None skips that check. Reads no weights.
    """
    _check_loadable(path, trust_remote_code)
    if not any((path / name).is_file() for name in TOKENIZER_NAMES):
        raise ConfigError(f"model folder {path} has no tokenizer ({' or '.join(TOKENIZER_NAMES)}): save one into it")
    positions = max_positions(path)
    if max_length_tokens is not None and positions is not None and max_length_tokens > positions:
        raise ConfigError(
            f"max_length_tokens={max_length_tokens} is more than the {positions} positions of model {path}: "
            f"set it to at most {positions} or choose a model with more"
        )
    _check_torchvision()


def check_has_scorer(path: Path) -> None:
    """Raise `ConfigError` unless there is a model with a score a sequence for the type of model in folder `path`."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

    config = _read_config(path)
    model_type = config.get("model_type")
    if model_type in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES or SCORER_CLASS in config.get("auto_map", {}):
        return
    raise ConfigError(
        f"model folder {path}: transformers has no sequence classifier for model type '{model_type}', so no reward model and no "
        "critic can be made of it; choose another model, or train without them"
    )


def max_positions(path: Path) -> int | None:
    """The longest sequence (tokens) that the model in folder `path` has positions for; None where its config has no limit."""
    config = _read_config(path)
    for values in (config, config.get("text_config") or {}):
        for name in POSITION_FIELDS:
            if isinstance(values.get(name), int):
                return int(values[name])
    return None


def load_tokenizer(path: Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder, its chat template included; one without a pad token pads with its end token."""
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except Exception as error:  # a damaged tokenizer file raises anything, a bare Exception from the tokenizers library included
        raise ConfigError(f"model folder {path}: its tokenizer cannot be loaded: {type(error).__name__}: {error}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def same_tokens(path: Path, other: Path, *, trust_remote_code: bool) -> bool:
    """Whether the tokenizers of both folders give every token the same id; raises what `load_tokenizer` does."""
    one, two = (load_tokenizer(folder, trust_remote_code=trust_remote_code).get_vocab() for folder in (path, other))
    return bool(one == two)


def load_lm(path: Path, *, dtype: Dtype, attention: str, trust_remote_code: bool = False) -> PreTrainedModel:
    """The causal language model in folder `path`, on the CPU, in eval mode, without dropout.

    `attention` auto takes SDPA where the model has it, and eager attention elsewhere.
    Raises `ConfigError` where the folder is incomplete: no weight is ever filled in at random.
    """
    from transformers import AutoModelForCausalLM

    model, missing = _load(AutoModelForCausalLM, path, dtype, attention, trust_remote_code)
    if missing:
        raise ConfigError(f"model folder {path} lacks weights of its language model: {_shown(missing)}; it is no causal LM")
    return model


def load_scorer(path: Path, *, dtype: Dtype, attention: str, trust_remote_code: bool = False, new_head: bool) -> PreTrainedModel:
    """A model with one score a sequence (head `score`, [1, hidden]), on the CPU, in eval mode, without dropout.

    `new_head` True puts a head of zeros on a causal LM, so that every score starts at 0. False expects a saved scorer;
    there a missing weight is a `ConfigError`, as everywhere.
    """
    from transformers import AutoModelForSequenceClassification

    check_has_scorer(path)
    model, missing = _load(AutoModelForSequenceClassification, path, dtype, attention, trust_remote_code, num_labels=1)
    head = getattr(model, "score", None)
    if not isinstance(head, nn.Linear) or head.out_features != 1:
        raise ConfigError(
            f"model folder {path}: {type(model).__name__} has no linear head 'score' with one output; choose a decoder-only model"
        )
    if missing - {HEAD_WEIGHT} or (missing and not new_head):
        raise ConfigError(f"model folder {path} lacks weights of its scorer: {_shown(missing)}; train or convert a reward model")
    if new_head:
        nn.init.zeros_(head.weight)
    return model


def _load(auto: Any, path: Path, dtype: Dtype, attention: str, trust: bool, **extra: Any) -> tuple[PreTrainedModel, set[str]]:
    """The model and the names of the weights that its folder lacks."""
    from transformers import AutoConfig

    _check_loadable(path, trust)
    source = {"pretrained_model_name_or_path": path, "local_files_only": True, "trust_remote_code": trust}
    # Left to itself transformers takes SDPA where the model has it, else eager attention.
    implementation = None if attention == "auto" else attention
    settings = {"dtype": TORCH_DTYPES[dtype], "attn_implementation": implementation, "output_loading_info": True}
    try:
        config = AutoConfig.from_pretrained(**source, **extra)
        set_dropout(config, None)
        model, info = auto.from_pretrained(**source, config=config, **settings)
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise ConfigError(f"model folder {path} cannot be loaded with attention '{attention}': {error}") from error
    for module in model.modules():
        if isinstance(module, nn.Dropout):  # in code that comes with a folder it may have a rate that no config names
            module.p = 0.0
    return model, set(info["missing_keys"])


def set_dropout(config: Any, like: Any | None) -> None:
    """Give every setting of `config` that makes training mode random the value that it has in `like`; without that, 0.

    Training and scoring must be one function of the weights, or the first on-policy ratio is not 1.
    """
    from transformers import PreTrainedConfig

    for name, value in list(vars(config).items()):
        if isinstance(value, PreTrainedConfig):
            set_dropout(value, getattr(like, name, None))
        elif RANDOM.search(name) and isinstance(value, int | float) and not isinstance(value, bool):
            setattr(config, name, type(value)() if like is None else getattr(like, name))


def _check_loadable(path: Path, trust_remote_code: bool) -> None:
    config = _read_config(path)
    _check_weights(path)
    if "auto_map" in config and not trust_remote_code:
        raise ConfigError(
            f"model folder {path} brings its own Python code ({', '.join(sorted(config['auto_map']))}) and trust_remote_code is "
            "false: read that code, then set model.trust_remote_code to true, or choose a model that transformers knows"
        )


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise ConfigError(f"model folder {path} does not exist: give a folder in Hugging Face layout")
    try:
        config: dict[str, Any] = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model folder {path} has no readable config.json ({error}): give a folder in Hugging Face layout"
        ) from error
    return config


def _check_weights(path: Path) -> None:
    if not any(file for pattern in WEIGHT_PATTERNS for file in path.glob(pattern)):
        raise ConfigError(f"model folder {path} has no weights (*.safetensors): save the model into it, or choose another folder")
    # transformers reads safetensors where there are any, and no index of another format then.
    ending = ".safetensors" if any(path.glob("*.safetensors")) else ".bin"
    for index in path.glob(f"*{ending}.index.json"):
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if absent := {shard for shard in shards if not (path / shard).is_file()}:
            raise ConfigError(f"model folder {path} lacks {len(absent)} of its {len(shards)} weight files: {_shown(absent)}")


def _check_torchvision() -> None:
    """A torchvision built for another torch breaks transformers and vLLM with an error that names neither."""
    if find_spec("torchvision") is None:
        return
    try:
        import_module("torchvision")
    except (ImportError, RuntimeError, AttributeError) as error:
        raise ConfigError(
            f"the installed torchvision does not fit torch {torch.__version__} ({error}): uninstall torchvision, "
            "which text models do not need, or install the build that belongs to this torch"
        ) from error


def _shown(names: set[str]) -> str:
    first = sorted(names)[:4]
    return ", ".join(first) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
