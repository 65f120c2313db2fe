"""How the offline recipes begin and end: the folder is checked, rows are read, the model is loaded, facts are reported."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch

from rlhf_core.batching.refused import named
from rlhf_core.device import placed
from rlhf_core.engine.engine import TrainingEngine
from rlhf_core.engine.rehearsal import rehearse_convert
from rlhf_core.models.folder import check_model_folder
from rlhf_core.models.load import load_tokenizer
from rlhf_core.models.lora import add_lora
from rlhf_core.models.modules import LanguageModule, ScoreModule
from rlhf_core.precision import Dtype
from rlhf_core.recipes.best import kept_weights, take_kept
from rlhf_core.recipes.examples import Example, Splits, TrainingTable, keep_fitting, read_examples
from rlhf_core.recipes.job import TrainingJob

REHEARSAL_NAME = "rehearsal"


class LoadModel(Protocol):
    """`load_lm`, or `load_scorer` with its head decided."""

    def __call__(self, path: Any, *, dtype: Dtype, attention: str, trust_remote_code: bool) -> Any:
        """The Hugging Face model of a folder."""


def check_and_load_tokenizer(job: TrainingJob[Any]) -> Any:
    """The model's tokenizer; raises `ConfigError` for a folder that cannot be trained, before anything heavy is loaded."""
    check_model_folder(job.model, trust_remote_code=job.trust_remote_code, max_length_tokens=job.config.max_length_tokens)
    return load_tokenizer(job.model, trust_remote_code=job.trust_remote_code)


def load_examples(
    job: TrainingJob[Any],
    table: TrainingTable,
    render: Callable[[Mapping[str, Any]], Example],
    cut: Callable[[Example], list[Example]] = lambda example: [example],
) -> Splits:
    """Training and validation rows, rendered, without the refused ones, and without the overlong where the settings drop those.

    `cut` makes pieces of what would be too long.
    """
    limit = job.config.max_dropped_fraction
    (whole, refused), (whole_validation, also_refused) = (
        read_examples(job.data, table, split, render, limit) for split in ("train", "validation")
    )
    train, validation = ([piece for example in examples for piece in cut(example)] for examples in (whole, whole_validation))
    kept_train, kept_validation = keep_fitting(train, job.config), keep_fitting(validation, job.config)
    n_dropped = len(train) + len(validation) - len(kept_train) - len(kept_validation)
    most = job.config.max_samples
    if most is not None and most < len(kept_train):
        kept_train = [kept_train[i] for i in sorted(random.Random(job.seed).sample(range(len(kept_train)), most))]
    return Splits(kept_train, kept_validation, n_dropped, (*refused, *also_refused))


def load_trainable(job: TrainingJob[Any], load: LoadModel) -> Any:
    """The model that `load` reads from `job.model`, where it is to be trained.

    It has adapters, drawn from the seed, unless `lora.rank` is 0.
    """
    config = job.config
    torch.manual_seed(job.seed)
    model = load(
        job.model,
        dtype=config.engine.precision,
        attention=config.engine.attention,
        trust_remote_code=job.trust_remote_code,
    )
    if config.lora.rank:
        add_lora(model, config.lora)
    return placed(model, config.engine)


def start_engine(job: TrainingJob[Any], module: LanguageModule | ScoreModule, total_steps: int) -> TrainingEngine:
    """The engine that trains `module`, once it is seen that it can be converted; says what is not as usual about its batches."""
    config = job.config
    engine = TrainingEngine(
        module, optimizer=config.optimizer, engine=config.engine, total_steps=total_steps, ema_decay=config.ema_decay
    )
    if engine.rank == 0:
        for note in module.layouts.notes:
            job.events.warn_once(note)
    rehearse_convert(engine, job.resume / REHEARSAL_NAME)
    if engine.rank == 0:
        job.events.metrics(0, module.layouts.metrics)
    return engine


def finish(job: TrainingJob[Any], engine: TrainingEngine, splits: Splits, facts: Mapping[str, float]) -> None:
    """Write the checkpoint artifact and report what it was trained on, with `facts` of the final evaluation."""
    best = kept_weights(job.resume)
    if best is None:
        engine.save_final(job.output)
    if engine.rank:
        return
    if best is not None:
        take_kept(best, job.output)
    if splits.n_dropped:
        limit = job.config.max_length_tokens
        job.events.warn(f"{splits.n_dropped} rows longer than max_length_tokens={limit} were dropped")
    if splits.refused:
        job.events.warn(f"{len(splits.refused)} rows were left out: {named(splits.refused)}")
    if not splits.validation:
        job.events.warn("the data has no validation split for this stage, so nothing was measured on unseen rows")
    rows = {"train_rows": len(splits.train), "validation_rows": len(splits.validation)}
    left_out = {"dropped_rows": splits.n_dropped, "refused_rows": len(splits.refused)}
    job.events.summary({**rows, **left_out, **facts})
