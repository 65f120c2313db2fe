"""Compressed files, shards, saved data sets and folders as people leave them: all of it is read, or what is not is named."""

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest

from data_processing.config import DataConfig, TableSource
from data_processing.errors import ConfigError, DataError
from data_processing.prepare import prepare
from data_processing.sources.files import read_files
from data_processing.sources.found import file_fingerprint, found_files
from tests.data.source_reading import Read, read_source

Row = dict[str, Any]
ROWS: list[Row] = [{"prompt": f"Frage {i}: ü", "response": f"Answer {i}"} for i in range(6)]
FIELD = "data.sft[0].path"


def lines(rows: list[Row]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def tar(members: dict[str, bytes]) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as shard:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            shard.addfile(member, io.BytesIO(content))
    return sink.getvalue()


def values(path: Path | str, **options: Any) -> list[Row | None]:
    return [raw.values for raw in read_files(found_files(TableSource(path=str(path), **options), FIELD).files)]


def read(path: Path | str, max_bad_fraction: float = 0.0) -> Read:
    return read_source("sft", TableSource(path=str(path)), "data.sft[0]", max_bad_fraction)


CSV = b"prompt,response\n" + b"".join(f"{row['prompt']},{row['response']}\n".encode() for row in ROWS)
TAR = tar({f"shards/{i}.json": json.dumps(row).encode() for i, row in enumerate(ROWS)})


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.ndjson", lines(ROWS)),
        ("rows.jsonl.gz", gzip.compress(lines(ROWS))),
        ("rows.jsonl.gz", gzip.compress(lines(ROWS[:3])) + gzip.compress(lines(ROWS[3:]))),
        ("rows.ndjson.zst", zstd(lines(ROWS))),
        ("rows.json.gz", gzip.compress(json.dumps(ROWS).encode())),
        ("rows.csv.zst", zstd(CSV)),
        ("rows.tar", TAR),
        ("rows.tar.gz", gzip.compress(TAR)),
        ("rows.tgz", gzip.compress(TAR)),
        ("rows.tar.zst", zstd(TAR)),
        ("rows.tar", tar({"a/rows.jsonl": lines(ROWS[:2]), "b/rows.jsonl": lines(ROWS[2:])})),
    ],
)
def test_compressed_files_and_shards_give_the_same_rows(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert values(tmp_path / name) == values(tmp_path) == ROWS


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.jsonl.zst", "rows.tar", "rows.tar.gz", "rows.csv.gz", "rows.json.zst"])
def test_a_compressed_file_or_shard_that_was_cut_is_a_data_error_that_names_it(tmp_path: Path, name: str) -> None:
    whole = {"rows.jsonl": lines(ROWS * 50), "rows.csv": CSV * 50, "rows.tar": TAR, "rows.json": json.dumps(ROWS * 50).encode()}
    content = whole[name.removesuffix(".gz").removesuffix(".zst")]
    compressed = gzip.compress(content) if name.endswith(".gz") else zstd(content) if name.endswith(".zst") else content
    (tmp_path / name).write_bytes(compressed[: len(compressed) // 2])
    with pytest.raises(DataError, match=f"{name}: not "):
        values(tmp_path / name)
    (tmp_path / name).write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match=f"{name}: not "):
        values(tmp_path / name)


def test_the_members_of_a_sample_are_one_row_and_those_that_cannot_be_used_say_why(tmp_path: Path) -> None:
    members = {
        "a.json": b'{"id": "first"}',
        "a.txt": "Once ü.".encode(),
        "b.txt": b"Twice.",
        "c.jpg": b"\xff",
        "c.txt": b"A picture.",
        "d.json": b"[1]",
        "e.npy": b"1",
    }
    (tmp_path / "shard.tar").write_bytes(tar(members))
    result = read(tmp_path / "shard.tar", max_bad_fraction=1.0)
    assert [(row["id"], row["messages"]) for row in result.rows] == [
        ("first", [{"role": "text", "content": "Once ü."}]),
        (result.rows[1]["id"], [{"role": "text", "content": "Twice."}]),
    ]
    reasons = {bad["row"]: bad["reason"] for bad in result.bad}
    assert list(reasons) == [f"shard.tar sample {n}" for n in (3, 4, 5)]
    for reason, said in zip(reasons.values(), ("image, audio or video", "JSON list", "ends in .npy"), strict=True):
        assert said in reason


def test_each_line_of_a_text_file_is_a_text_to_learn(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_bytes("\ufeffOnce upon a time.\r\n\n  The end. \n".encode())
    assert [row["messages"][0] for row in read(tmp_path).rows] == [
        {"role": "text", "content": "Once upon a time."},
        {"role": "text", "content": "  The end. "},
    ]


def test_a_folder_of_shards_with_several_endings_of_one_type_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "part-0.jsonl").write_bytes(lines(ROWS[:2]))
    (tmp_path / "part-1.jsonl.gz").write_bytes(gzip.compress(lines(ROWS[2:4])))
    (tmp_path / "part-2.ndjson").write_bytes(lines(ROWS[4:]))
    assert values(tmp_path) == values(f"jsonl@{tmp_path}") == ROWS


def test_hidden_files_caches_and_files_of_other_kinds_are_no_data_and_are_named(tmp_path: Path) -> None:
    (tmp_path / "chat" / "deep").mkdir(parents=True)
    (tmp_path / "chat" / "deep" / "rows.jsonl").write_bytes(lines(ROWS))
    for folder in (".ipynb_checkpoints", ".cache", "__MACOSX", "deep/.hidden"):
        (tmp_path / "chat" / folder).mkdir()
        (tmp_path / "chat" / folder / "old.jsonl").write_bytes(lines(ROWS))
    for name in ("._rows.jsonl", "README.md", "LICENSE", "notes.txt"):
        (tmp_path / "chat" / name).write_text("x")
    result = read(tmp_path / "chat")
    assert result.n_read == 6
    named = ".ipynb_checkpoints", ".cache", "__MACOSX", "deep/.hidden", "._rows.jsonl", "README.md", "LICENSE", "notes.txt"
    (note,) = result.notes
    assert note.startswith("data.sft[0]: passed over: ")
    assert all(f"'{name}'" in note for name in named)


def test_files_of_another_type_than_the_one_named_are_named(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(lines(ROWS))
    (tmp_path / "more.csv").write_bytes(CSV)
    assert found_files(TableSource(path=f"jsonl@{tmp_path}"), FIELD).passed_over == ["more.csv"]
    with pytest.raises(ConfigError, match=r"several types \(csv, jsonl\)"):
        values(tmp_path)


def test_a_link_to_nothing_stops_the_stage_and_linked_folders_are_read_once(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "b.jsonl").write_bytes(lines(ROWS[3:]))
    (tmp_path / "shards" / "a.jsonl").write_bytes(lines(ROWS[:3]))
    (tmp_path / "shards" / "linked").symlink_to("../blobs")
    (tmp_path / "shards" / "self").symlink_to(".")
    assert values(tmp_path / "shards") == ROWS
    (tmp_path / "shards" / "c.jsonl").symlink_to("../blobs/gone")
    for path in (tmp_path / "shards", tmp_path / "shards" / "c.jsonl"):
        with pytest.raises(ConfigError, match=r"c\.jsonl is a link to \.\./blobs/gone, which is not there; fetch it or remove"):
            values(path)


def test_a_header_that_names_a_column_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("prompt,response,response\na,b,c\n")
    with pytest.raises(DataError, match=r"rows\.csv: the header names 'response' twice"):
        read(tmp_path / "rows.csv")


def test_two_columns_of_one_name_after_renaming_make_a_bad_row(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(lines([{"q": "a", "prompt": "b", "response": "c"}]))
    source = TableSource(path=str(tmp_path / "rows.jsonl"), columns={"q": "prompt"})
    with pytest.raises(DataError, match="has two columns 'prompt' once they are renamed"):
        read_source("sft", source, "data.sft[0]", max_bad_fraction=0.0)


def test_the_home_folder_may_be_written_as_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "rows.jsonl").write_bytes(lines(ROWS))
    assert values("~/rows.jsonl") == values("~") == values("jsonl@~") == ROWS
    assert len(file_fingerprint(TableSource(path="~/rows.jsonl"), FIELD)) == 1


def test_folders_of_save_to_disk_are_read_and_their_split_is_the_sources(tmp_path: Path) -> None:
    one, other = datasets.Dataset.from_list(ROWS), datasets.Dataset.from_list(ROWS[:2])
    one.save_to_disk(tmp_path / "one", num_shards=3)
    datasets.DatasetDict({"train": one, "test": other}).save_to_disk(tmp_path / "both")
    assert values(tmp_path / "one") == values(tmp_path / "both") == ROWS
    assert values(tmp_path / "both", split="test") == ROWS[:2]
    assert found_files(TableSource(path=str(tmp_path / "both")), FIELD).passed_over == ["test"]
    assert found_files(TableSource(path=str(tmp_path / "one")), FIELD).passed_over == []
    with pytest.raises(ConfigError, match=r"has no split 'dev'; set the source's split to one of train, test"):
        values(tmp_path / "both", split="dev")
    with pytest.raises(ConfigError, match="split 'test' is for Hugging Face datasets and folders of save_to_disk"):
        values(tmp_path / "one", split="test")
    (tmp_path / "one" / "data-00001-of-00003.arrow").unlink()
    with pytest.raises(ConfigError, match=r"names data-00001-of-00003\.arrow, which is not there"):
        values(tmp_path / "one")


def test_what_is_passed_over_stands_in_the_summary(tmp_path: Path) -> None:
    (tmp_path / "chat").mkdir()
    (tmp_path / "chat" / "rows.jsonl").write_bytes(lines(ROWS))
    (tmp_path / "chat" / "README.md").write_text("x")
    config = DataConfig(procedures=None, sft=[TableSource(path=str(tmp_path / "chat"))])
    assert "data.sft[0]: passed over: 'README.md'" in prepare(config, tmp_path / "out", seed=0)["warnings"]
