"""The first prompts that a configuration gives, read before anything is prepared: to try on them what later runs on all."""

from __future__ import annotations

from itertools import islice
from typing import Any

from data_processing.config import DataConfig, SourceKind
from data_processing.procedures.rows import procedures_rows
from data_processing.sources.rows import SourceRows


def first_prompts(config: DataConfig, count: int, seed: int) -> list[dict[str, Any]]:
    """At most `count` rows of the prompts table from each of its sources, the built-in task first; few where sources have few.

    Datasets of a hub are not asked. Raises `ConfigError` for a source that is not there.
    """
    rows: list[dict[str, Any]] = []
    if config.procedures is not None and config.procedures.prompt_rows:
        none = {"sft_rows": 0, "preference_pairs": 0, "validation_rows": 0, "test_rows": 0}
        few = config.procedures.model_copy(update={**none, "prompt_rows": min(count, config.procedures.prompt_rows)})
        rows += procedures_rows(few, seed).get(("prompts", "train"), [])
    for i, source in enumerate(config.prompts):
        if source.kind is not SourceKind.huggingface:
            found = SourceRows("prompts", source, f"data.prompts[{i}]", max_bad_fraction=1.0)
            rows += [row for row, *_ in islice(found, count)]
    return rows
