"""The rows that an evaluation measures, read and tokenised: the test prompts, and the held-out conversations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import pyarrow as pa

from data_processing.errors import DataError
from data_processing.schemas import TableName, read_table
from data_processing.turns import extra_of, messages_of, tools_of
from evaluation.job import EvaluationJob, Prompt
from evaluation.row_selection import DrawnRow, count_rows, draw_rows, fitting, named
from rlhf_core.batching.refused import named as named_lines
from rlhf_core.batching.refused import render_rows
from rlhf_core.batching.rows import TokenRow
from rlhf_core.batching.templates import Renderer
from rlhf_core.models.folder import check_model_folder
from rlhf_core.models.load import load_tokenizer

T = TypeVar("T")


def read_prompts(job: EvaluationJob, renderer: Renderer) -> list[Prompt]:
    """The drawn test prompts that fit the model, in the table's order.

    Raises `ConfigError` where no prompt leaves room for an answer, `DataError` where too many do not or there are none, and as
    `render_rows` does.
    """
    check_model_folder(job.model, trust_remote_code=True)
    table = read_table("prompts", job.data / "prompts" / "test.parquet")
    if table.num_rows == 0:
        raise DataError("table 'prompts', split 'test' has no rows; give it some, for example by data.test_fraction")

    def render(row: Mapping[str, Any]) -> Prompt:
        messages = messages_of(row, "prompt")
        ids = renderer.prompt_ids(messages, tools_of(row))
        return Prompt(row["id"], messages, row["label"], row["source"], ids, extra_of(row))

    prompts, refused = _rendered(job, "prompts", table, render)
    rows = [DrawnRow(prompt.id, prompt.source, len(prompt.ids)) for prompt in prompts]
    kept = _keep_fitting(job, "prompts", table, rows, refused, new_tokens=job.config.max_new_tokens)
    return [prompts[i] for i in kept]


def read_held_out(job: EvaluationJob) -> list[tuple[str, TokenRow]]:
    """Ids and tokens of the drawn rows of the sft test split that fit the model; none where there is no such split.

    Read once: later calls give what the first one found. Raises as `read_prompts` does for rows that do not fit or cannot be rendered.
    """
    path = job.data / "sft" / "test.parquet"
    if job.held_out or not path.is_file():
        return job.held_out
    table = read_table("sft", path)
    renderer = Renderer(load_tokenizer(job.model, trust_remote_code=True), None)

    def render(row: Mapping[str, Any]) -> tuple[str, TokenRow]:
        return row["id"], renderer.conversation(messages_of(row, "messages"), tools_of(row))

    conversations, refused = _rendered(job, "sft", table, render)
    rows = [DrawnRow(id, "", len(tokens)) for id, tokens in conversations]
    job.held_out.extend(conversations[i] for i in _keep_fitting(job, "sft", table, rows, refused, new_tokens=0))
    return job.held_out


def _rendered(
    job: EvaluationJob, name: TableName, table: pa.Table, render: Callable[[Mapping[str, Any]], T]
) -> tuple[list[T], list[str]]:
    """The drawn rows that the model's template renders, and a line for each that it refuses, with a warning."""
    drawn = table.take(draw_rows(table["id"].to_pylist(), _sources(table), job.config.max_prompts, job.seed))
    rendered, refused = render_rows(name, drawn.to_pylist(), render, job.config.max_dropped_fraction)
    if refused:
        job.events.warn(f"{len(refused)} of {drawn.num_rows} rows drawn were left out: {named_lines(refused)}")
    return rendered, refused


def _keep_fitting(
    job: EvaluationJob, name: TableName, table: pa.Table, rows: Sequence[DrawnRow], refused: Sequence[str], *, new_tokens: int
) -> list[int]:
    """Indices of the rendered rows that fit the model; those that do not are counted, with a warning."""
    kept = fitting(name, rows, job.model, new_tokens=new_tokens, max_dropped_fraction=job.config.max_dropped_fraction)
    counts = job.counts[name] = count_rows(rows, kept, _sources(table), refused)
    if counts.left_out:
        job.events.warn(
            f"table '{name}', split 'test': {len(counts.left_out)} of {len(rows)} rows are too long for the model and left out: "
            + named(counts.left_out)
        )
    return kept


def _sources(table: pa.Table) -> list[str]:
    return table["source"].to_pylist() if "source" in table.column_names else [""] * table.num_rows
