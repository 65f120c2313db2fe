"""The entries of a pipeline: which stage each runs, from what, with which settings of its own. Declarations as a user writes them.

What nodes they become is in `flows.graph.expand`.
"""

from __future__ import annotations

import re

from pydantic import ConfigDict, Field, JsonValue, field_validator

from data_processing.settings import Settings

# Of the entries that every pipeline has, unless it gives its own under these names.
BASE, DATA = "base", "data"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_RESERVED = ("convert_", "evaluate_", "compare")


class Entry(Settings):
    """One entry. Beside the fields below it holds the stage's inputs: the name of an input and the entry it is taken from."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, str] = Field(init=False)

    stage: str = Field(
        description="A stage (sft, distill, reward_model, preference, online, merge, prepare_data, ...) or your own: module:attribute"
    )
    set: dict[str, JsonValue] = Field(
        default_factory=dict, description="Fields of the stage's section, laid over that section for this entry alone"
    )
    each: dict[str, list[JsonValue]] = Field(
        default_factory=dict, description="A sweep: values of fields of the stage (or of 'seed'); every combination is a variant"
    )
    rounds: int = Field(1, ge=1, le=100, description="Repetitions; each round starts from the model of the round before")
    seed: int | None = Field(None, ge=0, le=2**31 - 1, description="Seed of this entry; null: that of the run, or of its inputs")
    evaluate: bool = Field(True, description="Whether the model it makes is evaluated and compared")

    @property
    def inputs(self) -> dict[str, str]:
        """The inputs that were named, and the entries they are taken from."""
        return dict(self.__pydantic_extra__ or {})

    @field_validator("each")
    @classmethod
    def _axes_have_values(cls, each: dict[str, list[JsonValue]]) -> dict[str, list[JsonValue]]:
        for field, values in each.items():
            if not values or any(value in values[:i] for i, value in enumerate(values)):
                raise ValueError(f"'{field}' has {values}; give it at least one value, each once")
        return each


Entries = dict[str, Entry | None]


def with_sources(entries: Entries) -> dict[str, Entry]:
    """The entries that are there, before them the model and the data that every pipeline starts from."""
    sources: Entries = {BASE: Entry(stage="base_model"), DATA: Entry(stage="prepare_data")}
    return {name: entry for name, entry in {**sources, **entries}.items() if entry is not None}


def name_problem(name: str) -> str | None:
    """What is wrong with the name of an entry, in words; None where it may be used."""
    if not _NAME.fullmatch(name):
        return "names start with a letter and hold letters, digits, '_' and '-'"
    if name.startswith(_RESERVED):
        return f"names that start with {', '.join(_RESERVED)} are those of the nodes that follow every model"
    return None
