"""What completions are worth to the generator without a plan: a table by the prompts' ids, and what it was computed with.

Source: vrcli.md, section 5.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError

from data_processing.errors import ConfigError
from data_processing.file_hash import file_sha256
from data_processing.schemas import read_table, to_table, write_table
from data_processing.settings import Settings
from rlhf_core.credit.vr_cli.completions import Nll, Record
from rlhf_core.credit.vr_cli.improvement import perplexity
from rlhf_core.settings.vr_cli import VrCliBaselineConfig

TABLE_NAME, ABOUT_NAME = "baseline.parquet", "baseline.json"
FORMAT = 1
# What of a model's folder decides what it computes.
_DECIDING = (".safetensors", ".bin", ".json", ".jinja", ".model", ".py")
_ASIDE = ("manifest.json",)
_MAKER = "an entry of stage vr_cli_baseline makes it"


class About(Settings):
    """What a baseline was computed with: whoever compares with it has to compute alike."""

    format: int = Field(FORMAT, description="Of table and file")
    generator: str = Field(description="sha256 of the generator's folder: weights, config, tokenizer, template")
    settings: VrCliBaselineConfig = Field(description="How the generator was asked, and what was computed in")
    rows: int = Field(description="Of the table")


class Baseline:
    """The table of one baseline, in memory."""

    def __init__(self, about: About, rows: Mapping[str, Mapping[str, Any]]) -> None:
        self.about, self._rows = about, rows

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Raises `ConfigError` for a folder that holds none, `DataError` for a damaged table."""
        try:
            about = About.model_validate_json((folder / ABOUT_NAME).read_text(encoding="utf-8"))
        except (OSError, ValidationError) as error:
            raise ConfigError(f"{folder} holds no baseline of completions ({ABOUT_NAME}: {_line(error)}); {_MAKER}") from error
        if about.format != FORMAT:
            raise ConfigError(f"baseline {folder} is of format {about.format}, and {FORMAT} is read; {_MAKER}, so run that again")
        rows = {row["id"]: row for row in read_table("baseline", folder / TABLE_NAME).to_pylist()}
        if len(rows) != about.rows:
            raise ConfigError(f"baseline {folder} has {len(rows)} rows and should have {about.rows}; {_MAKER}, so run that again")
        return cls(about, rows)

    def mean_nll(self, row_id: str, record: Record) -> float:
        """Nats a token of a row's completion; raises `ConfigError` where the baseline is of other data."""
        row = self._rows.get(row_id)
        if row is None or row["record"] != record.id:
            what = "has no row" if row is None else "has another text"
            raise ConfigError(
                f"the baseline {what} for prompt '{row_id}', so it was made from other data: {_MAKER}; give it the same 'data' as "
                "this entry"
            )
        return float(row["mean_nll"])

    def check_generator(self, folder: Path) -> None:
        """Raise `ConfigError` unless the model in `folder` is the one that it was computed with."""
        if (found := generator_sha256(folder)) != self.about.generator:
            raise ConfigError(
                f"the generator {folder.name} (sha256 {found[:12]}) is not the model that the baseline was computed with "
                f"({self.about.generator[:12]}): {_MAKER}; give that entry as 'model' what this one has as 'generator'"
            )


def baseline_row(row_id: str, split: str, record: Record, nll: Nll) -> dict[str, Any]:
    """A row of the table."""
    return {
        "id": row_id,
        "split": split,
        "record": record.id,
        "n_tokens": nll.n_tokens,
        "nll_sum": nll.total_nats,
        "mean_nll": nll.mean,
        "baseline_ppl": perplexity(nll.mean),
    }


def write_baseline(folder: Path, rows: Sequence[Mapping[str, Any]], generator: Path, settings: VrCliBaselineConfig) -> None:
    """Table and description, into an artifact's folder."""
    settled = settings.model_copy(update={"dtype": settings.precision})
    about = About(generator=generator_sha256(generator), settings=settled, rows=len(rows))
    write_table("baseline", to_table("baseline", map(dict, rows)), folder / TABLE_NAME)
    (folder / ABOUT_NAME).write_text(about.model_dump_json(indent=1) + "\n", encoding="utf-8")


def generator_sha256(folder: Path) -> str:
    """Of the names and bytes of the files that decide what a model computes."""
    files = {
        path.name: file_sha256(path)
        for path in sorted(folder.iterdir())
        if path.is_file() and path.suffix in _DECIDING and path.name not in _ASIDE
    }
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
