"""Files of every type give the same rows; what is missing, broken or ambiguous is named."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_processing.config import SourceKind, TableSource
from data_processing.errors import AlignflowError, ConfigError, DataError
from data_processing.sources.files import RawRow, read_files
from data_processing.sources.found import file_fingerprint, found_files
from tests.data.source_reading import Read, read_source

ROWS: list[dict[str, Any]] = [
    {"prompt": f'Frage {i}: ü, "quoted"\nand a second line', "response": f"Answer {i}"} for i in range(4)
]
CHATS = [{"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": f"Because {i}."}]} for i in range(3)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows)
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    elif path.suffix == ".arrow":
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        cells = [{k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()} for row in rows]
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, list(cells[0]))
            writer.writeheader()
            writer.writerows(cells)
    return path


def values(path: Path | str) -> list[dict[str, Any] | None]:
    return [raw.values for raw in read_files(found_files(TableSource(path=str(path)), "data.sft[0].path").files)]


def read_sft(path: Path | str, max_bad_fraction: float = 0.0, **settings: Any) -> Read:
    return read_source("sft", TableSource(path=str(path), **settings), "data.sft[0]", max_bad_fraction)


@pytest.mark.parametrize("ending", ["parquet", "arrow", "json", "jsonl", "csv"])
def test_every_file_type_gives_the_same_rows(tmp_path: Path, ending: str) -> None:
    assert values(write(tmp_path / f"rows.{ending}", ROWS)) == ROWS


@pytest.mark.parametrize("ending", ["parquet", "arrow", "json", "jsonl", "csv"])
def test_message_lists_survive_every_file_type(tmp_path: Path, ending: str) -> None:
    rows = read_sft(write(tmp_path / f"rows.{ending}", CHATS)).rows
    assert [made["messages"] for made in rows] == [chat["messages"] for chat in CHATS]


def test_arrow_files_in_the_file_format_are_read_too(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    with pa.OSFile(str(tmp_path / "rows.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    assert values(tmp_path / "rows.arrow") == ROWS


def test_json_may_wrap_its_list_and_may_hold_json_lines(tmp_path: Path) -> None:
    (tmp_path / "wrapped.json").write_text(json.dumps({"version": 1, "data": ROWS}))
    (tmp_path / "lines.json").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert values(tmp_path / "wrapped.json") == values(tmp_path / "lines.json") == ROWS


def test_a_folder_is_read_in_the_order_of_its_file_names(tmp_path: Path) -> None:
    write(tmp_path / "b.jsonl", ROWS[2:])
    write(tmp_path / "a" / "deep.jsonl", ROWS[:2])
    assert values(tmp_path) == ROWS


def test_a_folder_with_several_types_needs_one_named(tmp_path: Path) -> None:
    write(tmp_path / "rows.parquet", ROWS)
    write(tmp_path / "info.json", [{"about": "something else"}])
    with pytest.raises(
        ConfigError, match=r"data\.sft\[0\]\.path: .* several types \(json, parquet\); name one, for example json@"
    ):
        values(tmp_path)
    assert values(f"parquet@{tmp_path}") == ROWS


def test_a_path_with_an_at_sign_that_exists_is_a_path(tmp_path: Path) -> None:
    assert values(write(tmp_path / "me@home" / "rows.jsonl", ROWS)) == ROWS


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("{tmp}/nothing.jsonl", "no file or folder at"),
        ("{tmp}", "no file of type"),
        ("jsonl@{tmp}", "no file of type jsonl"),
        ("jsonl@{tmp}/none", "no folder at"),
        ("xml@{tmp}", "unknown data type 'xml' .* allowed: parquet, jsonl, ndjson, json, csv, arrow"),
        ("{tmp}/rows.xml", "ends in none of .parquet, .jsonl"),
    ],
)
def test_paths_that_name_nothing_readable_say_field_value_and_what_is_allowed(tmp_path: Path, path: str, message: str) -> None:
    (tmp_path / "rows.xml").write_text("x")
    with pytest.raises(ConfigError, match=rf"data\.sft\[0\]\.path: .*{message}"):
        read_sft(path.format(tmp=tmp_path))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.parquet", b"not parquet"),
        ("rows.arrow", b"not arrow"),
        ("rows.arrow", b""),
        ("rows.json", b'[{"prompt": "a"'),
        ("rows.json", b'{"a": [], "b": []}'),
        ("rows.json", b"3"),
        ("rows.json", b"\xff\xfe"),
        ("rows.csv", b"prompt,response\n\xff\xfe,x\n"),
        ("rows.csv", b""),
        ("rows.jsonl", b""),
    ],
)
def test_broken_and_empty_files_are_data_errors_that_name_the_file(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        read_sft(tmp_path / name)


def test_a_truncated_parquet_file_is_a_data_error(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.parquet", ROWS)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"rows\.parquet"):
        read_sft(path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.text(max_size=3), json_values, max_size=3), st.booleans())
def test_json_lines_are_read_to_the_letter(tmp_path: Path, row: dict[str, Any], ascii_only: bool) -> None:
    line = json.dumps(row, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    (tmp_path / "rows.jsonl").write_bytes(line + b"\n")
    assert values(tmp_path / "rows.jsonl") == [json.loads(line)]


@pytest.mark.parametrize(
    ("line", "value"),
    [
        (b'\xef\xbb\xbf{"a": 1}', 1),
        (b'{"a": Infinity}', float("inf")),
        (b'{"a": 1e400}', float("inf")),
        (b'{"a": "\\ud800"}', "\ud800"),
        (b'{"a": 123456789012345678901234567890}', 123456789012345678901234567890),
        (b'{"a": 1, "a": 2}', 2),
    ],
)
def test_json_lines_that_only_some_parsers_take_are_read_as_python_reads_them(tmp_path: Path, line: bytes, value: Any) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b" \r\n" + line + b"\r\n\n")
    assert list(read_files([tmp_path / "rows.jsonl"])) == [RawRow("rows.jsonl line", 2, {"a": value})]


def bad_lines(tmp_path: Path, good: int) -> Path:
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"prompt": f"p{i}", "response": "r"}) for i in range(good)]
    path.write_bytes("\n".join(["{broken", *lines, "[1]", '{"prompt": "alone"}']).encode() + b'\n{"prompt": "\xff"}\n')
    return path


def test_bad_rows_are_listed_with_line_number_and_reason(tmp_path: Path) -> None:
    result = read_sft(bad_lines(tmp_path, good=96), max_bad_fraction=0.04)
    assert (result.n_read, result.n_bad, len(result.rows)) == (100, 4, 96)
    listed = [(bad["row"], bad["reason"]) for bad in result.bad]
    assert [where for where, _ in listed] == [f"rows.jsonl line {n}" for n in (1, 98, 99, 100)]
    for (_, reason), expected in zip(listed, ["not valid JSON", "a JSON list", "has no answer", "not valid JSON"], strict=True):
        assert expected in reason


def test_one_bad_row_more_than_allowed_stops_and_lists_them(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"4 of 100 rows .* more than data.max_bad_fraction=0.039(.|\n)*line 99: has no answer"):
        read_sft(bad_lines(tmp_path, good=96), max_bad_fraction=0.039)


def test_csv_rows_with_another_number_of_cells_are_bad_rows(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("prompt,response\na,b\nc\nd,e,f\n")
    result = read_sft(tmp_path / "rows.csv", max_bad_fraction=0.7)
    assert [bad["row"] for bad in result.bad] == ["rows.csv row 2", "rows.csv row 3"]


def test_long_csv_cells_and_a_byte_order_mark_are_no_problem(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(b"\xef\xbb\xbfprompt,response\n" + b"a" * 300_000 + b",b\n")
    assert len(read_sft(tmp_path / "rows.csv").rows) == 1


def test_the_fingerprint_follows_the_content_of_the_files(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", ROWS)
    before = file_fingerprint(TableSource(path=str(path)), "data.sft[0].path")
    assert before == file_fingerprint(TableSource(path=str(tmp_path)), "data.sft[0].path")
    write(path, ROWS[1:])
    assert file_fingerprint(TableSource(path=str(path)), "data.sft[0].path") != before


def test_hugging_face_datasets_are_read_by_name_and_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    write(tmp_path / "chats" / "train.jsonl", ROWS)
    write(tmp_path / "chats" / "test.jsonl", ROWS[:1])
    for split, count in (("train", 4), ("test", 1)):
        assert read_sft(tmp_path / "chats", kind="huggingface", split=split).n_read == count
    with pytest.raises(ConfigError, match="cannot load split 'dev'"):
        read_sft(tmp_path / "chats", kind="huggingface", split="dev")


def test_a_dataset_that_cannot_be_had_is_a_config_error_that_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"data\.sft\[0\]\.path: .* 'no-one/nothing' .*load it once online .* kind 'file'"):
        read_sft("no-one/nothing", kind="huggingface")


@pytest.mark.parametrize("option", [{"subset": "en"}, {"revision": "main"}])
def test_options_of_hugging_face_datasets_are_refused_for_files(option: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="only apply to kind 'huggingface'"):
        TableSource(path="rows.jsonl", **option)  # type: ignore[arg-type]
    assert TableSource(path="name", kind=SourceKind.huggingface, **option).path == "name"  # type: ignore[arg-type]


def test_config_and_data_errors_have_their_own_exit_codes() -> None:
    assert {error: error.exit_code for error in (ConfigError, DataError, AlignflowError)} == {
        ConfigError: 10,
        DataError: 11,
        AlignflowError: 1,
    }
