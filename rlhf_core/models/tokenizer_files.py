"""The files that are a tokenizer, in a model folder."""

from __future__ import annotations

import shutil
from pathlib import Path

from rlhf_core.batching.rendering import RENDERING_NAME

TOKENIZER_PATTERNS = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab.*",
    "merges.txt",
    RENDERING_NAME,
)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer's files, with the chat template and what it renders with, from one model folder to another."""
    for pattern in TOKENIZER_PATTERNS:
        for path in source.glob(pattern):
            if path.is_file():
                shutil.copyfile(path, target / path.name)
