"""The benchmark of data preparation at toy size; and memory that does not grow with the rows."""

import json
from pathlib import Path

import pytest

from benchmarks import data_growth

pytestmark = pytest.mark.seconds


def test_the_benchmark_gives_points_fits_and_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["", "--sizes", "50", "500", "--shape-rows", "20", "--out", str(tmp_path / "out.json")])
    data_growth.main()
    result = json.loads((tmp_path / "out.json").read_text())
    assert [(point["shape"], point["rows"]) for point in result["points"]] == [
        ("chat", 50),
        ("chat", 500),
        ("prompt and response", 20),
        ("pair", 20),
    ]
    assert all(point["megabytes"] * 1e6 == pytest.approx(1200 * point["rows"], rel=0.2) for point in result["points"])
    assert all(point["peak_mib"] >= point["before_mib"] > 0 for point in result["points"])
    assert set(result["fits"]) == {"seconds_exponent", "cpu_seconds_exponent", "peak_memory_exponent", "peak_bytes_per_row"}
    assert result["machine"]["cpu_count"] >= 1


def test_the_fits_are_the_exponents_and_the_slope() -> None:
    points = [{"rows": n, "wall_s": 3e-5 * n, "cpu_s": 1e-9 * n**2, "peak_mib": 100 + 32 * n / 2**20} for n in (10, 100, 1000)]
    assert data_growth.fits(points) == {
        "seconds_exponent": 1.0,
        "cpu_seconds_exponent": 2.0,
        "peak_memory_exponent": pytest.approx(0.0, abs=1e-3),
        "peak_bytes_per_row": 32.0,
    }


def test_three_times_the_rows_take_hardly_more_memory() -> None:
    fewer, more = (data_growth.point("chat", rows) for rows in (30_000, 90_000))
    # Holding the rows took four times their size; allocators and half-filled row groups make for some megabytes either way.
    assert more["peak_mib"] - fewer["peak_mib"] < 0.6 * (more["megabytes"] - fewer["megabytes"])
