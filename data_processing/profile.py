"""What the rows of the tables are like, at a glance: how long, in which scripts, and which are nearly the same as others."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_processing.config import SPLITS, Split
from data_processing.near_duplicates import MinHash, near_duplicates
from data_processing.scripts import script_of

# Of a larger table so many rows are looked at, drawn with a seed of their own.
MOST_ROWS = 100_000
LISTED = 10
_BATCH_ROWS = 1024
_COMPARED = 20_000  # characters of a row; what comes after them is not compared
_TEXTS = ("messages", "prompt", "chosen", "rejected", "response", "steps")


def add_profile(folder: Path) -> dict[str, Any]:
    """Profile the tables of a `data` artifact, and put that into its `summary.json` under `profile`; returns it, by table."""
    path = folder / "summary.json"
    summary = json.loads(path.read_text(encoding="utf-8"))
    profile = {table: profile_table(folder / table, counts) for table, counts in summary["rows"].items()}
    path.write_text(json.dumps({**summary, "profile": profile}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return profile


def near_copies(profile: dict[str, Any]) -> Iterator[str]:
    """A line on each table with rows that are nearly those of another split."""
    for table, seen in profile.items():
        if count := seen["near_duplicates"]["across_splits"]:
            yield (
                f"table '{table}': {count} rows are nearly the same as a row in another split, first "
                f"{seen['near_duplicates']['listed'][0]}; see profile in summary.json"
            )


def profile_table(folder: Path, counts: dict[Split, int]) -> dict[str, Any]:
    """Lengths in characters, share of rows by script, and near-duplicates among the rows of a table's splits."""
    looked_at = _Looked()
    hasher = MinHash()
    for split, texts, ids in _batches(folder, _drawn(counts)):
        looked_at.add(split, texts, ids, hasher)
    lengths = np.concatenate(looked_at.lengths)
    median, p95 = (round(float(np.percentile(lengths, share))) for share in (50, 95))
    return {
        "rows": {"looked_at": len(lengths), "of": sum(counts.values())},
        "characters": {"median": median, "p95": p95, "longest": int(lengths.max())},
        "scripts": {name: round(count / len(lengths), 4) for name, count in looked_at.scripts.most_common()},
        "near_duplicates": _near_duplicates(looked_at),
    }


class _Looked:
    """What is kept of the rows that were looked at: 128 bytes and an id each."""

    def __init__(self) -> None:
        self.lengths: list[NDArray[np.int32]] = []
        self.scripts: Counter[str] = Counter()
        self.signatures: list[NDArray[np.uint32]] = []
        self.splits: list[Split] = []
        self.ids: list[str] = []

    def add(self, split: Split, texts: pa.StringArray, ids: list[str], hasher: MinHash) -> None:
        """Take in some rows of a split."""
        self.lengths.append(pc.utf8_length(texts).to_numpy())
        is_plain = pc.and_(pc.string_is_ascii(texts), pc.match_substring_regex(texts, "[A-Za-z]"))
        self.scripts["Latin"] += pc.sum(is_plain).as_py() or 0
        self.scripts.update(script_of(text) for text in texts.filter(pc.invert(is_plain)).to_pylist())
        self.signatures.append(hasher.signatures(pc.utf8_slice_codeunits(texts, 0, _COMPARED)))
        self.splits += [split] * len(ids)
        self.ids += ids

    def named(self, row: int) -> str:
        """A row for people."""
        return f"{self.splits[row]} id {self.ids[row]}"


def _near_duplicates(looked_at: _Looked) -> dict[str, Any]:
    pairs = list(near_duplicates(np.concatenate(looked_at.signatures)))
    splits, named = looked_at.splits, looked_at.named
    # Those between splits first: by them what is held out is known in training.
    shown = sorted(pairs, key=lambda pair: splits[pair[0]] == splits[pair[1]])[:LISTED]
    return {
        "count": len(pairs),
        "across_splits": sum(splits[row] != splits[first] for row, first, _ in pairs),
        "listed": [f"{named(row)} is close to {named(first)} ({share:.0%} in common)" for row, first, share in shown],
    }


def _drawn(counts: dict[Split, int]) -> dict[Split, NDArray[np.bool_]]:
    """bool[rows] by split: which rows are looked at."""
    total = sum(counts.values())
    drawn = np.zeros(total, bool)
    drawn[np.random.default_rng(0).permutation(total)[:MOST_ROWS]] = True
    bounds = np.cumsum([0, *(counts[split] for split in SPLITS)])
    return {split: drawn[start:end] for split, start, end in zip(SPLITS, bounds[:-1], bounds[1:], strict=True)}


def _batches(folder: Path, drawn: dict[Split, NDArray[np.bool_]]) -> Iterator[tuple[Split, pa.StringArray, list[str]]]:
    """The texts and ids of the drawn rows, some at a time."""
    for split in SPLITS:
        start = 0
        with pq.ParquetFile(folder / f"{split}.parquet") as parquet:
            columns = [name for name in ("id", *_TEXTS) if name in parquet.schema_arrow.names]
            for batch in parquet.iter_batches(_BATCH_ROWS, columns=columns):
                kept = batch.filter(pa.array(drawn[split][start : start + batch.num_rows]))
                start += batch.num_rows
                if kept.num_rows:
                    yield split, _texts(kept), kept.column("id").to_pylist()


def _texts(rows: pa.RecordBatch) -> pa.StringArray:
    """All that the messages of a row say, one a line."""
    columns = [_joined(rows.column(name)) for name in _TEXTS if name in rows.schema.names]
    return pc.binary_join_element_wise(*columns, "\n") if len(columns) > 1 else columns[0]


def _joined(messages: pa.ListArray) -> pa.StringArray:
    contents = messages.flatten().field("content")
    lengths = pc.list_value_length(messages).to_numpy()
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pc.binary_join(pa.ListArray.from_arrays(pa.array(offsets), contents), "\n")
