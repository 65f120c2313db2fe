"""Lines that people wait in front of say how long it still takes; reading sources says how far it is."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_processing import pace as pacing
from data_processing import prepare as preparing
from data_processing.config import DataConfig, TableSource
from data_processing.pace import Pace
from data_processing.sources.rows import SourceRows


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(pacing.time, "monotonic", lambda: now[0])
    return now


def test_the_time_that_is_left_goes_by_the_parts_done_since_it_began(clock: list[float]) -> None:
    pace = Pace(20)
    assert pace.left(20, 100) == ""
    clock[0] += 30
    assert pace.left(30, 100) == ", 0:03:30 left"
    assert pace.left(100, 100) == ""


def test_it_is_due_once_a_second(clock: list[float]) -> None:
    pace = Pace()
    assert not pace.is_due()
    clock[0] += 1.0
    assert pace.is_due() and not pace.is_due()


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.jsonl.zst", "rows.parquet", "rows.arrow", "rows.csv"])
def test_how_much_of_a_source_is_read_is_known_while_it_is_read(tmp_path: Path, name: str) -> None:
    rows = [{"prompt": f"Question {number} {'x' * (number * 7919 % 1009)}", "response": str(number)} for number in range(6000)]
    path, lines = tmp_path / name, "".join(json.dumps(row) + "\n" for row in rows).encode()
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif name.endswith(".arrow"):
        table = pa.Table.from_pylist(rows)
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=500)
    elif name.endswith(".csv"):
        path.write_text("prompt,response\n" + "".join(f"{row['prompt']},{row['response']}\n" for row in rows))
    else:
        pack = {"gz": gzip.compress, "zst": lambda it: pa.compress(it, "zstd", asbytes=True)}.get(name.rpartition(".")[2], bytes)
        path.write_bytes(pack(lines))
    source = SourceRows("sft", TableSource(path=str(path)), "data.sft[0]", 0.0)
    shares = [source.read_share for number, _ in enumerate(source) if number % 500 == 0]
    assert shares == sorted(shares) and shares[0] >= 0.0 and shares[-1] <= 1.0
    assert len(set(shares)) > 1 or name.endswith((".gz", ".zst")), "small compressed files are read at once"
    assert source.read_share == pytest.approx(1.0)


def test_the_preparation_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing.Pace, "is_due", lambda self: True)
    lines = [json.dumps({"prompt": f"Question {number} {'x' * 900}", "response": "1"}) + "\n" for number in range(5000)]
    (tmp_path / "rows.jsonl").write_text("".join(lines))
    config = DataConfig.model_validate({"procedures": None, "sft": [{"path": str(tmp_path / "rows.jsonl")}]})
    told: list[tuple[int, int, str]] = []
    preparing.prepare(config, tmp_path / "out", 0, lambda done, total, line: told.append((done, total, line)))
    assert told[0][2].startswith("data.sft[0]: 256 rows read (")
    done = [percent for percent, _, _ in told]
    assert done == sorted(done) and done[-1] == 100
    assert any(" left" in line for _, _, line in told)
