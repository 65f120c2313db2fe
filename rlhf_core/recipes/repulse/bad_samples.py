"""Responses below a threshold, of every round and of both policies, in one table: what to look at, and to train a classifier on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

BAD_SAMPLES = "bad_samples.parquet"
SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("prompt", pa.string()),
        ("response", pa.string()),
        ("reward", pa.float32()),
        ("step", pa.int32()),
        ("drawn_by", pa.string()),
        ("times", pa.int32()),
    ]
)
_COLUMNS = ["prompt_id", "prompt_ids", "response_ids", "reward", "step"]


def write_bad_samples(folders: Sequence[Path], below: float, tokenizer: Any, path: Path) -> None:
    """A row for each response worth less than `below` to a prompt, of the tables of rounds in `folders`, with who drew it first and how often it came.

    Texts have their special tokens.
    """
    found: dict[tuple[str, tuple[int, ...]], dict[str, Any]] = {}
    for row in _rows(folders, below):
        key = row["prompt_id"], tuple(row["response_ids"])
        if key in found:
            found[key]["times"] += 1
            continue
        prompt, response = (str(tokenizer.decode(row[name])) for name in ("prompt_ids", "response_ids"))
        kept = {name: row[name] for name in ("prompt_id", "reward", "step", "drawn_by")}
        found[key] = {**kept, "prompt": prompt, "response": response, "times": 1}
    pq.write_table(pa.Table.from_pylist(list(found.values()), schema=SCHEMA), path)


def _rows(folders: Sequence[Path], below: float) -> Iterator[dict[str, Any]]:
    """Round by round, so that the first time is the first."""
    files = sorted(
        (path for folder in folders for path in folder.glob("step-*.parquet")), key=lambda path: (path.name, str(path))
    )
    for path in files:
        rows = pq.read_table(path, columns=_COLUMNS, filters=[("reward", "<", below)]).to_pylist()
        drawn_by = "policy" if path.parent.name == "rollouts" else "proposal"
        yield from ({**row, "drawn_by": drawn_by} for row in rows)
