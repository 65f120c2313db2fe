"""Model folders to models in memory: nothing is filled in at random, and training computes what scoring does."""

from __future__ import annotations

import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from data_processing.errors import ConfigError
from rlhf_core.models.folder import check_loadable
from rlhf_core.models.lean_import import import_transformers
from rlhf_core.models.scorer import check_scores, register_scorer
from rlhf_core.models.weight_files import shown
from rlhf_core.precision import Dtype

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TORCH_DTYPES: dict[Dtype, torch.dtype] = {"bf16": torch.bfloat16, "fp32": torch.float32}
HEAD_WEIGHT = "score.weight"
# Settings that make training mode random, under the names that configs have for them.
RANDOM = re.compile("dropout|pdrop|drop_?path|layer_?drop|drop_rate|jitter")


def load_tokenizer(path: Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder, its chat template included; one without a pad token pads with its end token."""
    import_transformers()
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except Exception as error:  # a damaged tokenizer file raises anything, a bare Exception from the tokenizers library included
        raise ConfigError(
            f"model folder {path}: its tokenizer cannot be loaded: {type(error).__name__}: {_line(error)}; copy its tokenizer files again"
        ) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def same_tokens(path: Path, other: Path, *, trust_remote_code: bool) -> bool:
    """Whether the tokenizers of both folders give every token the same id; raises what `load_tokenizer` does."""
    one, two = (load_tokenizer(folder, trust_remote_code=trust_remote_code).get_vocab() for folder in (path, other))
    return bool(one == two)


def load_lm(path: Path, *, dtype: Dtype, attention: str, trust_remote_code: bool = False) -> PreTrainedModel:
    """The causal language model in folder `path`, on the CPU, in eval mode, without dropout.

    `attention` auto takes SDPA where the model has it, and eager attention elsewhere.
    Raises `ConfigError` where the folder is incomplete: no weight is ever filled in at random.
    """
    import_transformers()
    from transformers import AutoModelForCausalLM

    model, missing = _load(AutoModelForCausalLM, path, dtype, attention, trust_remote_code)
    if missing:
        raise ConfigError(
            f"model folder {path} lacks weights of its language model: {shown(sorted(missing))}; it is no causal LM"
        )
    return model


def load_scorer(path: Path, *, dtype: Dtype, attention: str, trust_remote_code: bool = False, new_head: bool) -> PreTrainedModel:
    """A model with one score a sequence (head `score`, [1, hidden]), on the CPU, in eval mode, without dropout.

    `new_head` True puts a head of zeros on a causal LM, so that every score starts at 0. False expects a saved scorer;
    there a missing weight is a `ConfigError`, as everywhere.
    """
    import_transformers()
    from transformers import AutoModelForSequenceClassification

    model, missing = _load(AutoModelForSequenceClassification, path, dtype, attention, trust_remote_code, num_labels=1)
    check_scores(model, f"model folder {path}")
    if missing - {HEAD_WEIGHT} or (missing and not new_head):
        raise ConfigError(
            f"model folder {path} lacks weights of its scorer: {shown(sorted(missing))}; train or convert a reward model"
        )
    if new_head:
        nn.init.zeros_(model.score.weight)
    return model


def _load(auto: Any, path: Path, dtype: Dtype, attention: str, trust: bool, **extra: Any) -> tuple[PreTrainedModel, set[str]]:
    """The model and the names of the weights that its folder lacks."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    check_loadable(path, trust)
    check_torchvision()
    source = {"pretrained_model_name_or_path": path, "local_files_only": True, "trust_remote_code": trust}
    # Left to itself transformers takes SDPA where the model has it, else eager attention.
    implementation = None if attention == "auto" else attention
    settings = {"dtype": TORCH_DTYPES[dtype], "attn_implementation": implementation, "output_loading_info": True}
    try:
        config = AutoConfig.from_pretrained(**source, **extra)
        set_dropout(config, None)
        if auto is AutoModelForSequenceClassification:
            register_scorer(config)
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


def check_torchvision() -> None:
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
