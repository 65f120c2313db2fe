"""What the completions of a data folder's prompts are worth to a frozen model without a plan, as a table.

What is computed is kept below the resume folder while it goes on; rows are laid out by their part alone, so that an attempt that goes
on writes the table of one that was never ended.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_processing.config import SPLITS
from data_processing.errors import DataError
from data_processing.pace import Pace
from data_processing.schemas import read_table
from data_processing.turns import extra_of, messages_of
from rlhf_core.credit.vr_cli.baseline import baseline_row, write_baseline
from rlhf_core.credit.vr_cli.completions import CompletionRow, FrozenGenerator, Record
from rlhf_core.events import EventLog
from rlhf_core.models.folder import check_model_folder
from rlhf_core.models.passes import Tell
from rlhf_core.recipes.parts import write_part
from rlhf_core.recipes.stop import stop_if_requested_while
from rlhf_core.settings.vr_cli import VrCliBaselineConfig

# What a stop costs at most.
_ROWS_A_PART = 64
_NAMED = 5
_MOST_PERPLEXITY = 1e6


@dataclass(frozen=True)
class BaselineJob:
    """The prompts of `data`, in all of its splits, and their completions under the model in folder `generator`; folders of artifacts."""

    config: VrCliBaselineConfig
    generator: Path
    data: Path
    output: Path
    resume: Path
    events: EventLog


class _Asked(NamedTuple):
    row_id: str
    split: str
    record: Record
    row: CompletionRow


def compute_baseline(job: BaselineJob) -> dict[str, float]:
    """Write the table; returns what the stage's summary says of it.

    Raises `DataError` for prompts without a completion, and for those that are too long with it; `PreemptedError` when asked to stop.
    """
    config = job.config
    check_model_folder(job.generator, trust_remote_code=True, max_length_tokens=config.max_length_tokens)
    generator = FrozenGenerator(job.generator, config, gpus=config.gpus)
    for note in generator.notes:
        job.events.warn_once(note)
    asked = [_Asked(*each, generator.row(each[2])) for each in _records(job)]
    _check_lengths(asked, config.max_length_tokens)
    parts = job.resume / "baseline"
    parts.mkdir(parents=True, exist_ok=True)
    pace = Pace(_ROWS_A_PART * len(list(parts.glob("part-*.json"))))
    rows: list[dict[str, Any]] = []
    for first in range(0, len(asked), _ROWS_A_PART):
        place, part = parts / f"part-{first:06d}.json", asked[first : first + _ROWS_A_PART]
        if not place.is_file():
            found = generator.nll([each.row for each in part], _tell(job, pace, range(first, first + len(part)), len(asked)))
            own = [baseline_row(each.row_id, each.split, each.record, nll) for each, nll in zip(part, found, strict=True)]
            write_part(place, own)
        rows += json.loads(place.read_text(encoding="utf-8"))
    _check_perplexities(rows)
    write_baseline(job.output, rows, job.generator, config)
    return _facts(rows)


def _tell(job: BaselineJob, pace: Pace, part: range, n_rows: int) -> Tell:
    """What hears of the micro-batches of a part of the rows: it tells once a second how many rows are scored, and looks for a stop."""

    def tell(done: int, total: int) -> None:
        stop_if_requested_while(job.resume, "completions were scored")
        if pace.is_due():
            row = part.start + len(part) * done // total
            job.events.progress(row, n_rows, f"completion {row} of {n_rows}{pace.left(row, n_rows)}")

    return tell


def _records(job: BaselineJob) -> Iterator[tuple[str, str, Record]]:
    """Id, split and record of each prompt."""
    files = {split: job.data / "prompts" / f"{split}.parquet" for split in SPLITS}
    rows = [(split, row) for split, path in files.items() if path.is_file() for row in read_table("prompts", path).to_pylist()]
    if not rows:
        raise DataError(f"{job.data} has no prompts: completions belong to the 'prompts' table; add sources to data.prompts")
    gold, lacking = job.config.gold, list[str]()
    for split, row in rows:
        record = Record.of(messages_of(row, "prompt"), row["label"], extra_of(row), gold)
        if record is None:
            lacking.append(row["id"])
        else:
            yield row["id"], split, record
    if lacking:
        what, remedy = "neither a label nor an answer", "name its column in vr_cli_baseline.gold"
        if gold is not None:
            what, remedy = (
                f"nothing in their column '{gold}'",
                "leave vr_cli_baseline.gold null if that column became their label",
            )
        raise DataError(
            f"{len(lacking)} of {len(rows)} prompts ({', '.join(lacking[:_NAMED])}, ...) have {what} to be a completion: add it to the "
            f"rows, or {remedy}"
        )


def _check_lengths(asked: Sequence[_Asked], most: int) -> None:
    if too_long := [f"{each.row_id} ({len(each.row.ids)} tokens)" for each in asked if len(each.row.ids) > most]:
        raise DataError(
            f"{len(too_long)} of {len(asked)} prompts ({', '.join(too_long[:_NAMED])}, ...) are longer with their completion than "
            f"max_length_tokens={most}, and a completion is never cut: raise vr_cli_baseline.max_length_tokens, or leave these rows out"
        )


def _check_perplexities(rows: Sequence[dict[str, Any]]) -> None:
    if broken := [f"{row['id']} ({row['baseline_ppl']:.3g})" for row in rows if not 1 <= row["baseline_ppl"] < _MOST_PERPLEXITY]:
        raise DataError(
            f"the completions of {len(broken)} of {len(rows)} prompts ({', '.join(broken[:_NAMED])}, ...) have perplexities that are no "
            f"numbers, or {_MOST_PERPLEXITY:.0e} and more: look at these rows, and at the generator's weights and precision"
        )


def _facts(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    perplexities = np.array([row["baseline_ppl"] for row in rows])
    low, median, high = np.quantile(perplexities, (0.05, 0.5, 0.95)).tolist()
    return {
        "rows": len(rows),
        "tokens": sum(row["n_tokens"] for row in rows),
        "perplexity_5%": low,
        "perplexity_median": median,
        "perplexity_95%": high,
    }
