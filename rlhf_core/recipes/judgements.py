"""What single answers were judged as: a method that learns from them needs good ones and bad ones."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from data_processing.errors import DataError


def check_both_kinds(data: Path) -> None:
    """Raise `DataError` where all answers to learn from are desirable, or none is. Pairs have one of each."""
    path = data / "unpaired" / "train.parquet"
    if (data / "preference" / "train.parquet").is_file() or not path.is_file():
        return
    judged = pq.read_table(path, columns=["desirable"])["desirable"].to_pylist()
    if judged.count(True) in (0, len(judged)):
        kind, other = ("desirable", "undesirable") if judged[0] else ("undesirable", "desirable")
        instead = "; or train on these with the stage sft" if judged[0] else ""
        raise DataError(
            f"unpaired/train: all {len(judged)} answers are {kind}, and KTO moves the two kinds apart: add {other} ones to "
            f"data.unpaired, or pairs to data.preference{instead}"
        )
