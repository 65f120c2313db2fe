"""Generation settings of a model folder (`generation_config.json`), made such that transformers saves them again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data_processing.errors import ConfigError

GENERATION_NAME = "generation_config.json"
# Settings of generation that have an effect only with do_sample, and only with num_beams.
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
BEAMS = ("early_stopping", "length_penalty")


def valid_generation(folder: Path, embedding_rows: int) -> tuple[Any | None, str | None]:
    """The folder's generation config, and what was changed in it, in words; None for each where there is none.

    Settings of sampling without `do_sample` mean sampling; where it is false they mean nothing and go. Ids of tokens that
    the embedding has no row for go too. Raises `ConfigError` naming what is still wrong.
    """
    from transformers import GenerationConfig

    path = folder / GENERATION_NAME
    if not path.is_file():
        return None, None
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        config = GenerationConfig(**given)
        before = config.to_dict()
        if config.temperature == 0:
            config.do_sample = False
        elif config.do_sample is None and any(given.get(name) is not None for name in SAMPLING):
            config.do_sample = True
        drop_idle(config)
        _drop_unknown_tokens(config, embedding_rows)
        config.validate(strict=True)
        _check_mode(config)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}; correct it, or remove the file") from error
    after = config.to_dict()
    changed = [f"{name} {before.get(name)} -> {after.get(name)}" for name in after if before.get(name) != after.get(name)]
    return config, f"{GENERATION_NAME} was made valid: {', '.join(changed)}" if changed else None


def _check_mode(generation: Any) -> None:
    """Raise `ValueError` for a way of decoding that transformers has only by a name now."""
    from transformers.generation.utils import GENERATION_MODES_MAPPING

    mode = generation.get_generation_mode()
    if "/" in GENERATION_MODES_MAPPING[mode]:
        raise ValueError(f"it asks for {mode.value}, which transformers cannot do any more")


def drop_idle(generation: Any) -> None:
    """Forget settings of sampling where nothing is sampled, and of beams without beams: transformers does not save them."""
    idle = (() if generation.do_sample else SAMPLING) + (() if (generation.num_beams or 1) > 1 else BEAMS)
    for name in idle:
        setattr(generation, name, None)


def _drop_unknown_tokens(generation: Any, embedding_rows: int) -> None:
    for name in ("bos_token_id", "pad_token_id", "eos_token_id", "decoder_start_token_id"):
        value = getattr(generation, name, None)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        kept = [i for i in ids if 0 <= i < embedding_rows]
        if kept != ids:
            setattr(generation, name, (kept if isinstance(value, list) else kept[0]) if kept else None)
