"""The rows that an evaluation measures, read and tokenised: the test prompts, and the held-out conversations."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from data_processing.errors import DataError
from data_processing.schemas import TableName, read_table
from evaluation.job import EvaluationJob, Prompt
from evaluation.rows import DrawnRow, count_rows, draw_rows, fitting, named
from rlhf_core.batching.rows import TokenRow
from rlhf_core.batching.templates import Renderer
from rlhf_core.models.load import check_model_folder, load_tokenizer


def read_prompts(job: EvaluationJob, renderer: Renderer) -> list[Prompt]:
    """The drawn test prompts that fit the model, in the table's order.

    Raises `ConfigError` where no prompt leaves room for an answer, `DataError` where too many do not or there are none.
    """
    check_model_folder(job.model, trust_remote_code=True)
    table = read_table("prompts", job.data / "prompts" / "test.parquet")
    if table.num_rows == 0:
        raise DataError("table 'prompts', split 'test' has no rows; give it some, for example by data.test_fraction")
    drawn = _draw(job, table)
    prompts = [
        Prompt(row["id"], row["prompt"], row["label"], row["source"], renderer.prompt_ids(row["prompt"]))
        for row in drawn.to_pylist()
    ]
    kept = _keep_fitting(
        job, "prompts", table, drawn, [len(prompt.ids) for prompt in prompts], new_tokens=job.config.max_new_tokens
    )
    return [prompts[i] for i in kept]


def read_held_out(job: EvaluationJob) -> list[tuple[str, TokenRow]]:
    """Ids and tokens of the drawn rows of the sft test split that fit the model; none where there is no such split.

    Read once: later calls give what the first one found. Raises as `read_prompts` does for rows that do not fit.
    """
    path = job.data / "sft" / "test.parquet"
    if job.held_out or not path.is_file():
        return job.held_out
    table = read_table("sft", path)
    drawn = _draw(job, table)
    renderer = Renderer(load_tokenizer(job.model, trust_remote_code=True), None)
    rows = [renderer.conversation(messages) for messages in drawn["messages"].to_pylist()]
    ids = drawn["id"].to_pylist()
    job.held_out.extend(
        (ids[i], rows[i]) for i in _keep_fitting(job, "sft", table, drawn, [len(row) for row in rows], new_tokens=0)
    )
    return job.held_out


def _draw(job: EvaluationJob, table: pa.Table) -> pa.Table:
    return table.take(draw_rows(table["id"].to_pylist(), _sources(table), job.config.max_prompts, job.seed))


def _keep_fitting(
    job: EvaluationJob, name: TableName, table: pa.Table, drawn: pa.Table, tokens: Sequence[int], *, new_tokens: int
) -> list[int]:
    """Indices of the drawn rows that fit the model; those that do not are counted, with a warning."""
    rows = [DrawnRow(*row) for row in zip(drawn["id"].to_pylist(), _sources(drawn), tokens, strict=True)]
    kept = fitting(name, rows, job.model, new_tokens=new_tokens, max_dropped_fraction=job.config.max_dropped_fraction)
    counts = job.counts[name] = count_rows(rows, kept, _sources(table))
    if counts.left_out:
        job.events.warn(
            f"table '{name}', split 'test': {len(counts.left_out)} of {len(rows)} rows are too long for the model and left out: "
            + named(counts.left_out)
        )
    return kept


def _sources(table: pa.Table) -> list[str]:
    return table["source"].to_pylist() if "source" in table.column_names else [""] * table.num_rows
