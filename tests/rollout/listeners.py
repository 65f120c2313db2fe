"""Listeners of the tests: they hear, in the actor, of each response that has ended."""

from __future__ import annotations

from pathlib import Path

from rlhf_core.rollout.base import Generation


class Heard:
    """Keeps places of prompts and lengths in a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __call__(self, place: int, generation: Generation) -> None:
        with self.file.open("a") as log:
            log.write(f"{place} {len(generation.response_ids)}\n")


class Breaks:
    def __call__(self, place: int, generation: Generation) -> None:
        raise ValueError("enough")
