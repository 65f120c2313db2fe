"""Settings of the prepare_data stage."""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from data_processing.settings import Settings, local_path, operational

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


class ProceduresConfig(Settings):
    """The built-in verifiable task (see docs/data.md): sizes, difficulty and noise of what is generated."""

    difficulty: int = Field(
        2, ge=1, le=3, description="1: up to 3 rules in order; 2: up to 5, shuffled; 3: exceptions and two-attribute rules"
    )
    sft_rows: int = Field(
        112, ge=0, description="Training rows for SFT; few on purpose, so that later stages have something to gain"
    )
    preference_pairs: int = Field(256, ge=0, description="Training pairs (optimal procedure, one named corruption)")
    prompt_rows: int = Field(256, ge=0, description="Training prompts for online training, labelled with the policy as JSON")
    validation_rows: int = Field(32, ge=0, description="Rows of the validation split of each table")
    test_rows: int = Field(64, ge=0, description="Unseen policies of the test split")
    plan_instruction: str | None = Field(
        None,
        min_length=1,
        description="Prompts ask for a plan, by this instruction behind them, and hold the procedure as their completion (VR-CLI); null: "
        "for the procedure",
    )
    noisy_label_fraction: float = Field(
        0.0, ge=0.0, lt=0.5, description="Share of training pairs with chosen and rejected swapped"
    )


class SourceKind(str, Enum):
    """Where rows come from."""

    huggingface = "huggingface"
    file = "file"
    stories = "stories"
    reasoning_gym = "reasoning_gym"
    verifiers = "verifiers"


# Whose paths are on this disk.
LOCAL = (SourceKind.file, SourceKind.stories)


class StoryOptions(Settings):
    """What a source of kind `stories` takes as `options`: how novels are cut, and which of their chapters are taken."""

    heading: str = Field(
        r"^[ \t]*(?:CHAPTER|Chapter)[ \t]+(?:[IVXLCivxlc]+|[0-9]+)\b.*$",
        description="Regular expression of the line that a chapter of a text begins with",
    )
    pieces_of_words: int | None = Field(
        None,
        ge=10,
        description="Texts are cut into pieces of about so many words, at ends of sentences, instead of chapters; null: chapters",
    )
    previous: int = Field(1, ge=1, description="Chapters or pieces before the next one that are shown, of a text")
    least_words: int | None = Field(None, ge=0, description="The next chapter has more words; null: 200, of pieces 0")
    most_words: int = Field(
        5000, ge=1, description="The next chapter and what is shown of the story before it have fewer words each"
    )
    most_prompt_words: int = Field(10_000, ge=1, description="The whole prompt has fewer words")
    first_chapter: int = Field(2, ge=0, description="Number of the first chapter that is a next one")
    last_chapters: int | None = Field(
        None, ge=0, description="Chapters at the end of a text that are no next ones; null: 2, of pieces 0"
    )

    @field_validator("heading")
    @classmethod
    def _is_an_expression(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"{value!r} is no regular expression: {error}") from error
        return value

    @property
    def longer_than_words(self) -> int:
        """`least_words`, or what null means."""
        return self.least_words if self.least_words is not None else 0 if self.pieces_of_words else 200

    @property
    def left_at_the_end(self) -> int:
        """`last_chapters`, or what null means."""
        return self.last_chapters if self.last_chapters is not None else 0 if self.pieces_of_words else 2


class TableSource(Settings):
    """One source of rows for one table.

    `path` is a Hugging Face dataset name, a file (.parquet, .jsonl, .ndjson, .json, .csv, .arrow, .txt, .tar; text and tar also
    .gz or .zst), a folder of such files or of `save_to_disk`, or `data_type@dir` (for example `jsonl@/data/chat`), which reads
    every file of that type below the folder. With kind `stories` files are novels (.txt), or rows of chapters (docs/vr_cli.md). With kind `reasoning_gym` it is the name of a dataset of that library, with kind
    `verifiers` that of an environment of that one.
    """

    path: str = Field(
        description="Dataset name, file, folder, or data_type@dir; ~ is your home", json_schema_extra={"path": True}
    )
    kind: SourceKind = Field(
        SourceKind.file,
        description="'file' for local paths, 'stories' for novels in them, 'huggingface' for dataset names, 'reasoning_gym' for generated ones, 'verifiers' for those of "
        "an environment",
    )
    split: str = Field("train", description="Split of a Hugging Face dataset, or of a folder of save_to_disk that has splits")
    subset: str | None = Field(None, description="Configuration name of a Hugging Face dataset")
    revision: str | None = Field(
        None,
        description="Commit, tag or branch of a Hugging Face dataset, versions of the library that makes the rows; resolved when a run is "
        "planned",
    )
    max_rows: int | None = Field(None, ge=1, description="Read at most this many rows; of kind 'reasoning_gym' make so many")
    seed: int = Field(0, ge=0, description="Of kind 'reasoning_gym' or 'verifiers': what the rows are drawn or shuffled with")
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="Of kind 'reasoning_gym': settings of the dataset's generator; of 'verifiers': arguments of load_environment; of "
        "'stories': heading, pieces_of_words, previous and others (docs/vr_cli.md)",
    )
    into: Split | None = Field(None, description="Split that all its rows are put in; null: each by its prompt")
    instruction: str | None = Field(
        None,
        min_length=1,
        description="Of the prompts table: appended to the user's last turn of each prompt, for the policy alone; the prompt without it goes "
        "along as column 'asked'",
    )
    columns: dict[str, str] = Field(
        default_factory=dict, description="Renames source columns: {name in the source: name a recogniser knows}"
    )

    @model_validator(mode="before")
    @classmethod
    def _path_is_absolute(cls, values: Any) -> Any:
        """A worker of a cluster starts in another folder than the command that reads the settings."""
        if not isinstance(values, dict) or not isinstance(path := values.get("path"), str) or not path:
            return values
        if values.get("kind", SourceKind.file) not in LOCAL:
            return values
        data_type, at, folder = path.partition("@")
        named = at and data_type.isidentifier() and not Path(path).expanduser().exists()
        return values | {"path": f"{data_type}@{local_path(folder)}" if named else local_path(path)}

    @model_validator(mode="after")
    def _options_apply(self) -> TableSource:
        given = [
            name
            for name in _ONLY_OF
            if getattr(self, name) != type(self).model_fields[name].get_default(call_default_factory=True)
        ]
        if wrong := [name for name in given if self.kind not in _ONLY_OF[name]]:
            kinds = dict.fromkeys(kind.value for name in wrong for kind in _ONLY_OF[name])
            allowed = " or ".join(f"'{kind}'" for kind in kinds)
            raise ValueError(f"{', '.join(wrong)} only apply to kind {allowed}; remove them or set the kind")
        if self.kind is SourceKind.stories:
            StoryOptions.model_validate(self.options)
        if self.kind is SourceKind.reasoning_gym and self.max_rows is None:
            raise ValueError("max_rows is needed with kind 'reasoning_gym': say how many rows to make")
        return self


# Fields that mean something to these kinds only.
_ONLY_OF: dict[str, tuple[SourceKind, ...]] = {
    "subset": (SourceKind.huggingface,),
    "revision": (SourceKind.huggingface, SourceKind.reasoning_gym, SourceKind.verifiers),
    "seed": (SourceKind.reasoning_gym, SourceKind.verifiers),
    "options": (SourceKind.reasoning_gym, SourceKind.verifiers, SourceKind.stories),
}
_EARLIER = {"allow_duplicates", "allow_leaks"}


class DataConfig(Settings):
    """What prepare_data reads, how it splits, and how much bad data it tolerates."""

    procedures: ProceduresConfig | None = Field(
        default_factory=ProceduresConfig, description="Settings of the built-in task; null to use only the sources below"
    )
    sft: list[TableSource] = Field(default_factory=list, description="Sources of the sft table")
    preference: list[TableSource] = Field(default_factory=list, description="Sources of the preference table")
    prompts: list[TableSource] = Field(default_factory=list, description="Sources of the prompts table")
    unpaired: list[TableSource] = Field(default_factory=list, description="Sources of the unpaired table")
    stepwise: list[TableSource] = Field(default_factory=list, description="Sources of the stepwise table")
    validation_fraction: float = Field(0.05, ge=0.0, lt=0.5, description="Share of the sources' prompts in the validation split")
    test_fraction: float = Field(0.05, ge=0.0, lt=0.5, description="Share of the sources' prompts in the test split")
    max_bad_fraction: float = Field(
        0.01, ge=0.0, le=1.0, description="Share of unreadable rows above which the stage stops (exit 11)"
    )
    max_duplicate_fraction: float = Field(
        0.05,
        ge=0.0,
        le=1.0,
        description="Share of a table's rows above which rows that repeat, leak or contradict others stop the stage (exit 11); "
        "up to it they are dropped and counted",
    )

    preview_rows: int = operational(3, "Rows of each table shown in the stage's summary", ge=0, le=20)

    @field_validator("sft", "preference", "unpaired", "stepwise")
    @classmethod
    def _instructions_are_for_prompts(cls, sources: list[TableSource]) -> list[TableSource]:
        if any(source.instruction for source in sources):
            raise ValueError("instruction is for sources of the prompts table; remove it, and put what is learnt into the rows")
        return sources

    @property
    def asks_for_procedures(self) -> bool:
        """Whether prompts of the built-in task are labelled with their policies: not where they ask for plans."""
        return self.procedures is not None and self.procedures.plan_instruction is None

    @model_validator(mode="before")
    @classmethod
    def _earlier_names(cls, values: Any) -> Any:
        """Configs that say with `allow_duplicates` or `allow_leaks` whether any row may be dropped mean all or none."""
        if not isinstance(values, dict) or not _EARLIER & values.keys():
            return values
        allowed = float(any(values.get(name) is True for name in _EARLIER))
        kept = {name: value for name, value in values.items() if name not in _EARLIER}
        return {"max_duplicate_fraction": allowed, **kept}
