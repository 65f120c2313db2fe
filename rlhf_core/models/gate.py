"""The gate for models: what is let through can be loaded, trained, converted, generated with and saved by every later stage.

One check of a folder, from its config, tokenizer, template and the headers of its weights. `plan` and `run` make it before
anything starts, the `base_model` stage makes it again and writes what it has mended. No weight is read, but of `.bin` files.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from data_processing.errors import AlignflowError, ConfigError, DataError
from rlhf_core.batching.chat_templates import read_template
from rlhf_core.batching.rendering import Rendering, read_rendering, uses_date
from rlhf_core.batching.templates import Renderer
from rlhf_core.models.bin_weights import read_bin
from rlhf_core.models.folder import check_model_folder
from rlhf_core.models.generation import valid_generation
from rlhf_core.models.load import check_torchvision, load_tokenizer
from rlhf_core.models.scorer import check_scores, register_scorer
from rlhf_core.models.vocabulary import not_resized, tokens_without_row, without_tokens
from rlhf_core.models.weight_files import WeightFiles, read_weight_files, shown
from rlhf_core.settings.models import BaseModelConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What older versions of transformers saved beside the weights: numbers that every model of the kind has.
_CONSTANTS = (".masked_bias",)
# What torch says of a layer whose inputs and weights do not go together.
_SHAPES_CLASH = re.compile(
    "match the size|cannot be multiplied|invalid for input of size|size mismatch|Expected size|broadcast|step sign"
)
_PROBE_TOKENS = 8
_PROBE = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello"}]


@dataclass(frozen=True)
class Examined:
    """A model as it is taken in: its tokenizer with its template, and what differs from the files of its folder.

    `config` are values of config.json that are changed, `generation` the generation config where it was; `notes` say
    in words what was mended and what could not be checked.
    """

    tokenizer: PreTrainedTokenizerBase
    tokenizer_changed: bool
    rendering: Rendering
    config: Mapping[str, int | list[int] | None]
    generation: Any | None
    notes: tuple[str, ...]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without progress bars, reports and warnings of transformers: what is wrong is said here, in a line."""
    from transformers.utils import logging

    verbosity, shows = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shows:
            logging.enable_progress_bar()


@_quiet()
def examine(folder: Path, settings: BaseModelConfig, *, scores: bool = False) -> Examined:
    """Check the model folder under its settings; with `scores` also whether a reward model or critic can be made of it.

    Raises `ConfigError` for what a later stage would refuse.
    """
    from transformers import AutoConfig

    trust = settings.trust_remote_code
    check_model_folder(folder, trust_remote_code=trust)
    check_torchvision()
    weights = read_weight_files(folder)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust)
    except Exception as error:  # impossible values raise anything
        raise ConfigError(
            f"model folder {folder}: config.json cannot be used: {_line(error)}; correct it, or copy it again"
        ) from error
    _check_plain(folder, config)
    tokenizer = load_tokenizer(folder, trust_remote_code=trust)
    ids, notes = _sane_ids(config, tokenizer)
    rows, said = _compared(folder, config, weights, trust)
    if scores:
        _check_scores(folder, config, trust)
    with _working_tokenizer(folder):
        kept, lost = _with_rows(tokenizer, rows, settings)
        rendering, renderer = _rendering(folder, kept, settings)
    generation, mended = valid_generation(folder, rows)
    changed = kept is not tokenizer or kept.pad_token is None or renderer.template != kept.chat_template
    kept.chat_template = renderer.template
    if kept.pad_token is None:  # nor has it an end of text, which would pad
        kept.pad_token = kept.convert_ids_to_tokens(renderer.stop_ids[0])
    every = (*notes, *said, *lost, *([mended] if mended else []))
    return Examined(kept, changed, rendering, ids, generation if mended else None, every)


def _check_plain(folder: Path, config: Any) -> None:
    """Raise `ConfigError` for quantised weights: many cannot be trained, and transformers saves none of them as plain ones again."""
    for part in (config, config.get_text_config()):
        if (quantised := getattr(part, "quantization_config", None)) is not None:
            method = quantised.get("quant_method", "no quant_method given") if isinstance(quantised, dict) else quantised
            raise ConfigError(
                f"model folder {folder}: config.json has a quantization_config ({method}), and quantised weights cannot be trained and "
                "saved again; give the model with plain weights (bf16 or fp32) and without that entry"
            )


def _sane_ids(config: Any, tokenizer: PreTrainedTokenizerBase) -> tuple[dict[str, int | list[int] | None], list[str]]:
    """What config.json says of special tokens, where its vocabulary has no such id; also set in `config`."""
    changes: dict[str, int | list[int] | None] = {}
    vocabulary = config.get_text_config().vocab_size
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        value = getattr(config, name, None)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if any(not isinstance(i, int) or not 0 <= i < vocabulary for i in ids):
            own = getattr(tokenizer, name)
            kept = [i for i in ids if isinstance(i, int) and 0 <= i < vocabulary]
            changes[name] = kept or (own if own is not None and own < vocabulary else None)
            setattr(config, name, changes[name])
            setattr(config.get_text_config(), name, changes[name])
    notes = [
        f"config.json: {name} had no row in the vocabulary of {vocabulary}; it is {value} now" for name, value in changes.items()
    ]
    return changes, notes


def _compared(folder: Path, config: Any, weights: WeightFiles, trust: bool) -> tuple[int, list[str]]:
    """Rows of the embedding, from the model that `config` describes, once the weights are seen to be those of that model.

    They are read as `from_pretrained` reads them, renamed and tied, but on tensors without memory. Where that cannot be
    done nothing is refused, and a note says so.
    """
    from transformers import AutoModelForCausalLM

    model = _outline(folder, AutoModelForCausalLM, config, trust)
    _check_cache(folder, model)
    rows = int(model.get_input_embeddings().weight.shape[0])
    tensors = {name: torch.empty(shape, device="meta") for name, shape in _shapes(weights).items()}
    try:
        _, info = type(model).from_pretrained(
            None,
            config=model.config,
            state_dict=tensors,
            device_map="meta",
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except Exception as error:  # of the comparison, not of the model: it must not cost a user a model that works
        return rows, [f"names and shapes of its weights could not be compared with config.json: {_line(error)}"]
    _refuse(
        folder, weights, {kind: sorted(map(_named, info[f"{kind}_keys"])) for kind in ("unexpected", "missing", "mismatched")}
    )
    return rows, []


@torch.no_grad()
def _check_cache(folder: Path, model: Any) -> None:
    """Raise `ConfigError` unless the model, which has no memory, computes and gives the cache that responses are sampled with."""
    try:
        said = model.eval()(input_ids=torch.zeros(1, _PROBE_TOKENS, dtype=torch.long, device="meta"), use_cache=True)
    except Exception as error:
        if _SHAPES_CLASH.search(str(error)) or isinstance(error, ZeroDivisionError):
            raise ConfigError(
                f"model folder {folder}: the model that config.json describes computes nothing: {_line(error)}; correct it"
            ) from error
        return  # not every layer can be computed without numbers; then nothing is known
    if getattr(said, "past_key_values", None) is None:
        raise ConfigError(
            f"model folder {folder}: {type(model).__name__} keeps its state to itself, without a cache (past_key_values) from one token "
            "to the next, so transformers cannot sample responses side by side; choose another model"
        )


def _check_scores(folder: Path, config: Any, trust: bool) -> None:
    """Raise `ConfigError` unless a reward model and a critic can be made of such a model."""
    from transformers import AutoModelForSequenceClassification

    one_score = copy.deepcopy(config)
    one_score.num_labels = 1
    register_scorer(one_score)
    check_scores(_outline(folder, AutoModelForSequenceClassification, one_score, trust), f"model folder {folder}")


def _outline(folder: Path, auto: Any, config: Any, trust: bool) -> Any:
    """The model that the config describes, on tensors without memory."""
    try:
        with torch.device("meta"):
            return auto.from_config(config, trust_remote_code=trust)
    except Exception as error:  # a config with impossible values raises anything
        raise ConfigError(f"model folder {folder}: config.json describes no model of text: {_line(error)}; correct it") from error


def _shapes(weights: WeightFiles) -> Mapping[str, tuple[int, ...]]:
    if weights.shapes is not None:
        return weights.shapes
    return {name: tuple(tensor.shape) for file in weights.files for name, tensor in read_bin(file, "meta").items()}


def _refuse(folder: Path, weights: WeightFiles, faults: Mapping[str, list[str]]) -> None:
    """Raise `ConfigError` for weights that have no place, that are missing, or whose shapes are others."""
    where = weights.index.name if weights.index else weights.files[0].name
    if names := [name for name in faults["unexpected"] if not name.endswith(_CONSTANTS)]:
        raise ConfigError(
            f"model folder {folder}: {where} holds {len(names)} weights that the configuration has no place for "
            f"({shown(names)}); correct config.json, or remove them"
        )
    if names := faults["missing"]:
        raise ConfigError(
            f"model folder {folder}: {where} lacks {len(names)} weights of the model ({shown(names)}); copy the model again, or give one that is a causal LM"
        )
    if names := faults["mismatched"]:
        raise ConfigError(
            f"model folder {folder}: {where} and config.json disagree on shapes: {shown(names)}; correct config.json"
        )


def _with_rows(
    tokenizer: PreTrainedTokenizerBase, rows: int, settings: BaseModelConfig
) -> tuple[PreTrainedTokenizerBase, list[str]]:
    """The tokenizer without the tokens that have no row, which neither its template nor the end of a text may need."""
    gone = tokens_without_row(tokenizer, rows)
    if not gone:
        return tokenizer, []
    renderer = Renderer(tokenizer, _chosen(settings), Rendering(chat_template_kwargs=settings.chat_template_kwargs))
    ids = {*renderer.conversation(_PROBE).ids, *renderer.prompt_ids(_PROBE[:1]), tokenizer.bos_token_id, tokenizer.eos_token_id}
    if needed := [token for token in gone if tokenizer.convert_tokens_to_ids(token) in ids]:
        raise not_resized(tokenizer, rows, needed)
    padded = tokenizer.pad_token
    left = without_tokens(tokenizer, gone, rows, trust_remote_code=settings.trust_remote_code)
    notes = [f"{shown(gone)} left the tokenizer: the embedding has {rows} rows and none for them"]
    return left, [*notes, *([f"{left.pad_token} pads in place of {padded}"] if padded in gone else [])]


@contextmanager
def _working_tokenizer(folder: Path) -> Iterator[None]:
    """Whatever a tokenizer raises in the block that was loaded, and cannot encode, is `ConfigError`."""
    try:
        yield
    except AlignflowError:
        raise
    except Exception as error:  # its library raises bare exceptions
        raise ConfigError(f"model folder {folder}: its tokenizer does not work: {_line(error)}; copy its files again") from error


def _rendering(folder: Path, tokenizer: PreTrainedTokenizerBase, settings: BaseModelConfig) -> tuple[Rendering, Renderer]:
    """What is rendered with, to be kept; and a renderer with the complete template."""
    rendering = read_rendering(folder).settled(settings.template_date, settings.chat_template_kwargs)
    renderer = Renderer(tokenizer, _chosen(settings), rendering)
    try:
        renderer.conversation(_PROBE)
    except DataError as error:
        raise ConfigError(f"chat_template: not even one question and its answer can be trained on: {error}") from error
    if not uses_date(renderer.template):
        # Without the date, so that the artifact is the same whatever day it is made on.
        if settings.template_date is not None:
            raise ConfigError(
                f"model.template_date={settings.template_date}: the chat template asks for no date (strftime_now); remove the setting"
            )
        rendering = rendering.model_copy(update={"date": None})
    return rendering.model_copy(update={"refuses": renderer.refuses}), renderer


def _chosen(settings: BaseModelConfig) -> str | None:
    return None if settings.chat_template is None else read_template(settings.chat_template)


def _named(key: Any) -> str:
    return key if isinstance(key, str) else f"{key[0]} {list(key[1])} in place of {list(key[2])}"


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
