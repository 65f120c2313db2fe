"""Rows of every format, changed at random, in files of every type, some of them damaged.

Rows read are rows used, refused and dropped; and every text of a row that is used is found in what is trained on.
"""

from __future__ import annotations

import copy
import csv
import gzip
import io
import json
import random
import re
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_processing.config import DataConfig
from data_processing.errors import AlignflowError
from data_processing.prepare import TABLES, prepare
from data_processing.schemas import TableName, read_table
from data_processing.sources.rows import SourceRows
from data_processing.turns import messages_of, tools_of
from rlhf_core.batching.chat_templates import read_template
from rlhf_core.batching.templates import Renderer
from rlhf_core.recipes.examples import conversation, judged_answer, pair, steps
from tests.batching.template_cases import byte_level
from tests.data.shape_cases import CASES
from tests.fuzz.outcome import Finding, outcome
from tests.fuzz.values import at, damage, places, text, value

Row = dict[str, Any]
COLUMNS = tuple(
    sorted({name for case in CASES for name in case.row} | {"weight", "margin", "kto_tag", "functions", "audio", "id", "Prompt"})
)
# What says nothing of a row's own: roles, and names that tie a result to its call.
_NOT_SAID = frozenset({"role", "from", "type", "id", "tool_call_id", "url", "name"})
_WORD = re.compile(r"q\d+z")


def attempt(rng: random.Random, folder: Path) -> None:
    """Prepare one file of rows, and render what came of them."""
    words = iter(range(1_000_000))
    rows = [_row(rng, words) for _ in range(rng.choice((1, 1, 2, 3, 6)))]
    file = WRITERS[rng.choice(tuple(WRITERS))](rng, rows, folder)
    if rng.random() < 0.12:
        damage(rng, file)
    table = rng.choice(TABLES)
    source: Row = {"path": str(file)}
    if rng.random() < 0.1:
        source["columns"] = {rng.choice(COLUMNS): rng.choice(COLUMNS)}
    if rng.random() < 0.1:
        source["max_rows"] = rng.randint(1, 3)
    tolerance = {"max_bad_fraction": 1.0, "max_duplicate_fraction": 1.0} if rng.random() < 0.8 else {}
    config = DataConfig.model_validate({"procedures": None, table: [source], **tolerance})
    names = [file.name, f"data.{table}", f"table '{table}'"]
    outcome(lambda: _check_counts(config, table, folder / "out"), names)
    outcome(lambda: _check_texts(config, table), names)


def _check_counts(config: DataConfig, table: TableName, output: Path) -> None:
    summary = prepare(config, output, seed=0)
    used = sum(summary["rows"][table].values())
    lost = sum(summary[what]["count"] for what in ("bad_rows", "duplicates", "contradictions", "leaks"))
    there = sum(len(read_table(table, path)) for path in (output / table).glob("*.parquet"))
    if not summary["read"][table] == used + lost or used != there:
        raise Finding(f"read {summary['read']}, used {used} ({there} in the files), left out {lost}")
    if unexpected := [bad for bad in summary["bad_rows"]["listed"] if "could not be read as a row" in bad["reason"]]:
        raise Finding(f"an error nobody thought of: {unexpected}")


def _check_texts(config: DataConfig, table: TableName) -> None:
    source = SourceRows(table, getattr(config, table)[0], f"data.{table}[0]", max_bad_fraction=1.0)
    for row, _, raw in source:
        try:
            found = _rendered(table, row)
        except AlignflowError as error:
            if not str(error).strip():
                raise Finding("refused without a reason") from error
            continue
        found += json.dumps([row.get("margin"), row.get("label"), row.get("extra")])
        told = " ".join(source.notes)
        for name, cell in (raw.values or {}).items():
            renamed = getattr(config, table)[0].columns.get(name, name)
            if f"'{renamed}'" in told or ", ..." in told:
                continue
            if missing := [word for word in _said(cell, renamed, told) if word not in found]:
                raise Finding(
                    f"{raw.origin} {raw.number}: column '{renamed}' loses {missing}; notes {source.notes}; row {raw.values}"
                )


def _said(cell: Any, column: str, told: str) -> Iterator[str]:
    """The words of a cell, but for those under keys that the notes name."""
    if isinstance(cell, str) and cell.startswith(("[", "{")):
        with suppress(ValueError):
            cell = json.loads(cell)
    unused = {name.rpartition(".")[2] for name in re.findall(r"'([^']+)'", told) if name.startswith(f"{column}[]")}
    cell = _without(cell, unused)
    yield from _WORD.findall(cell if isinstance(cell, str) else json.dumps(cell, default=str))


def _without(item: Any, names: set[str]) -> Any:
    if isinstance(item, dict):
        return {name: _without(inner, names) for name, inner in item.items() if name not in names}
    return [_without(inner, names) for inner in item] if isinstance(item, list) else item


@cache
def _renderer() -> Renderer:
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return Renderer(byte_level(tokens, bos=None, eos="<|im_end|>"), read_template("qwen3"))


def _rendered(table: TableName, row: Row) -> str:
    """The text of all that a stage makes of a row of a table."""
    renderer = _renderer()
    if table == "prompts":
        return str(renderer.tokenizer.decode(renderer.prompt_ids(messages_of(row, "prompt"), tools_of(row))))
    render = {"sft": conversation, "preference": pair, "unpaired": judged_answer, "stepwise": steps}[table]
    return "".join(renderer.tokenizer.decode(tokens.ids) for tokens in render(renderer, row).rows)


def _row(rng: random.Random, words: Iterator[int]) -> Row:
    row = copy.deepcopy(rng.choice(CASES).row)
    for _ in range(rng.choice((0, 0, 1, 1, 2, 4))):
        _change(rng, row)
    marked: Row = _marked(row, words)
    return marked


def _change(rng: random.Random, row: Row) -> None:
    how = rng.random()
    inside = places(row)
    if how < 0.15 or not inside:
        row[rng.choice(COLUMNS)] = value(rng)
    elif how < 0.25:
        row.pop(rng.choice(tuple(row)))
    elif how < 0.35:
        other = rng.choice(CASES).row
        row |= {name: copy.deepcopy(other[name]) for name in other if rng.random() < 0.6}
    elif how < 0.45:
        name = rng.choice(tuple(row))
        row[rng.choice(COLUMNS)] = row.pop(name)
    else:
        _change_inside(rng, row, rng.choice(inside))


def _change_inside(rng: random.Random, row: Row, path: tuple[Any, ...]) -> None:
    holder, key = at(row, path[:-1]), path[-1]
    how = rng.random()
    if how < 0.35:
        holder[key] = value(rng)
    elif how < 0.55 and isinstance(holder[key], str):
        holder[key] = rng.choice(
            (holder[key] + text(rng), text(rng) + holder[key], text(rng), holder[key].upper(), [holder[key]])
        )
    elif how < 0.7:
        holder[key] = json.dumps(holder[key])
    elif isinstance(holder, list):
        rng.choice((rng.shuffle, list.reverse, list.clear, lambda it: it.append(copy.deepcopy(it[0]))))(holder)
    else:
        other = rng.choice(
            ("role", "content", "weight", "train", "name", "tool_calls", "reasoning_content", "images", "thinking", "x")
        )
        holder[other] = rng.choice((holder[key], value(rng), text(rng)))


def _marked(item: Any, words: Iterator[int], key: str = "") -> Any:
    """The value with a word of its own in every text that says something."""
    if isinstance(item, dict):
        return {name: _marked(inner, words, str(name)) for name, inner in item.items()}
    if isinstance(item, list):
        return [_marked(inner, words, key) for inner in item]
    if not isinstance(item, str) or key in _NOT_SAID or not item.strip():
        return item
    if item.startswith(("{", "[")):
        try:
            return json.dumps(_marked(json.loads(item), words, key))
        except (ValueError, RecursionError):
            return item
    return f"{item} q{next(words)}z"


def _as_text(rows: list[Row]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _json_lines(rng: random.Random, rows: list[Row], folder: Path) -> Path:
    ending, pack = rng.choice(
        ((".jsonl", bytes), (".ndjson", bytes), (".json", bytes), (".jsonl.gz", gzip.compress), (".jsonl.zst", _zstd))
    )
    path = folder / f"rows{ending}"
    separator = rng.choice(("\n", "\n", "\r\n", "\n\n"))
    path.write_bytes(pack(_as_text(rows).replace("\n", separator).encode()))
    return path


def _zstd(content: bytes) -> bytes:
    packed: bytes = pa.compress(content, codec="zstd", asbytes=True)
    return packed


def _json_list(rng: random.Random, rows: list[Row], folder: Path) -> Path:
    path = folder / "rows.json"
    wrapped = rng.choice(
        (rows, rows, {"data": rows}, {"data": rows, "version": 1}, {"a": rows, "b": rows}, rows[:1], rows[0] if rows else {})
    )
    path.write_text(json.dumps(wrapped, indent=rng.choice((None, 1))), encoding="utf-8")
    return path


def _csv(rng: random.Random, rows: list[Row], folder: Path) -> Path:
    names = list(dict.fromkeys(name for row in rows for name in row))
    stream = io.StringIO()
    writer = csv.writer(stream, delimiter=rng.choice((",", ",", ",", ";", "\t")))
    writer.writerow(names)
    for row in rows:
        writer.writerow([cell if isinstance(cell := row.get(name, ""), str) else json.dumps(cell) for name in names])
    path = folder / "rows.csv"
    path.write_bytes(stream.getvalue().encode("utf-8", "surrogatepass"))
    return path


def _columnar(rng: random.Random, rows: list[Row], folder: Path) -> Path:
    try:
        table = pa.Table.from_pylist(rows)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):  # rows of several minds: Arrow has no column for them
        return _json_lines(rng, rows, folder)
    if rng.random() < 0.5:
        path = folder / "rows.parquet"
        try:
            pq.write_table(table, path)
        except (pa.ArrowException, UnicodeEncodeError):
            return _json_lines(rng, rows, folder)
        return path
    path = folder / "rows.arrow"
    make = rng.choice((pa.ipc.new_file, pa.ipc.new_stream))
    with pa.OSFile(str(path), "wb") as sink, make(sink, table.schema) as writer:
        writer.write_table(table)
    return path


def _lines(rng: random.Random, rows: list[Row], folder: Path) -> Path:
    path = folder / "rows.txt"
    path.write_text("\n".join(str(next(iter(row.values()), "")) for row in rows), encoding="utf-8", errors="replace")
    return path


def _shard(rng: random.Random, rows: list[Row], folder: Path) -> Path:
    path = folder / rng.choice(("rows.tar", "rows.tar.gz", "rows.tgz"))
    with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as shard:
        for number, row in enumerate(rows):
            ending = rng.choice(("json", "json", "json", "txt", "jsonl", "jpg", "cls", "bin"))
            content = (text(rng) if ending == "txt" else json.dumps(row)).encode("utf-8", "replace")
            member = tarfile.TarInfo(f"{rng.choice(('', 'a/', '__MACOSX/'))}{number // rng.choice((1, 2)):04d}.{ending}")
            member.size = len(content)
            shard.addfile(member, io.BytesIO(content))
    return path


WRITERS: dict[str, Callable[[random.Random, list[Row], Path], Path]] = {
    "lines": _json_lines,
    "more lines": _json_lines,
    "list": _json_list,
    "csv": _csv,
    "columnar": _columnar,
    "text": _lines,
    "shard": _shard,
}
