"""A model's answers to the test prompts, sampled and greedy, in one start of the generation engine."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from data_processing.errors import ConfigError, DataError
from data_processing.schemas import read_table
from evaluation.job import Answer, EvaluationJob, Prompt
from rlhf_core.batching.templates import Renderer
from rlhf_core.models.load import check_model_folder, load_tokenizer
from rlhf_core.rollout.base import Generation, Generator, Sampling
from rlhf_core.rollout.choose import choose_engine, make_generator

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What the engine runs at once; bounded by its key-value cache anyway.
_MAX_SEQUENCES = 64


def generate_answers(job: EvaluationJob) -> list[Answer]:
    """Answers to the first `max_prompts` test prompts: all decodings of one prompt after the other's, prompt by prompt.

    The engine is gone when this returns. Raises `ConfigError` for a prompt that leaves no room for an answer,
    `DataError` where there are no test prompts.
    """
    tokenizer = load_tokenizer(job.model, trust_remote_code=True)
    renderer = Renderer(tokenizer, None)
    prompts = read_prompts(job, renderer)
    generator = _start(job, prompts)
    try:
        return [answer for decoding in _decodings(job) for answer in _answers(job, generator, renderer, prompts, decoding)]
    finally:
        del generator
        _release_memory()


def read_prompts(job: EvaluationJob, renderer: Renderer) -> list[Prompt]:
    """The test prompts with their tokens, in the table's order, at most `max_prompts`."""
    table = read_table("prompts", job.data / "prompts" / "test.parquet").slice(0, job.config.max_prompts)
    if table.num_rows == 0:
        raise DataError("table 'prompts', split 'test' has no rows; give it some, for example by data.test_fraction")
    return [
        Prompt(id=row["id"], messages=row["prompt"], label=row["label"], ids=renderer.prompt_ids(row["prompt"]))
        for row in table.to_pylist()
    ]


def _start(job: EvaluationJob, prompts: Sequence[Prompt]) -> Generator:
    config = job.config
    longest = max(len(prompt.ids) for prompt in prompts)
    _check_room(job, longest)
    engine, reason = choose_engine(config.engine, job.model, config.gpus)
    job.events.progress(0, 1, f"generating with {engine.value} ({reason})")
    return make_generator(
        engine,
        job.model,
        dtype=config.dtype,
        max_model_len=longest + config.max_new_tokens,
        max_num_seqs=_MAX_SEQUENCES,
        kv_cache_mib=config.kv_cache_mib,
        gpu_memory_fraction=0.4,
        threads=config.threads,
        trust_remote_code=True,
        gpus=config.gpus,
    )


def _check_room(job: EvaluationJob, longest: int) -> None:
    """Raise `ConfigError` where the longest prompt and its answer have more tokens than the model has positions."""
    room = longest + job.config.max_new_tokens
    check_model_folder(job.model, trust_remote_code=True)
    try:
        check_model_folder(job.model, trust_remote_code=True, max_length_tokens=room)
    except ConfigError as error:
        raise ConfigError(
            f"evaluate.max_new_tokens={job.config.max_new_tokens} behind the longest test prompt of {longest} tokens: {error}"
        ) from error


def _decodings(job: EvaluationJob) -> Iterator[str]:
    yield "sampled"
    if job.config.greedy:
        yield "greedy"


def _answers(
    job: EvaluationJob, generator: Generator, renderer: Renderer, prompts: Sequence[Prompt], decoding: str
) -> Iterator[Answer]:
    greedy = decoding == "greedy"
    sampling = Sampling(
        temperature=job.config.temperature,
        max_new_tokens=job.config.max_new_tokens,
        n=1 if greedy else job.config.samples_per_prompt,
        greedy=greedy,
        stop_ids=tuple(renderer.stop_ids),
    )
    groups = generator.generate([prompt.ids for prompt in prompts], sampling, job.seed)
    for prompt, group in zip(prompts, groups, strict=True):
        for sample, generation in enumerate(group):
            yield _answer(prompt, decoding, sample, generation, renderer.tokenizer)


def _answer(prompt: Prompt, decoding: str, sample: int, generation: Generation, tokenizer: PreTrainedTokenizerBase) -> Answer:
    text = tokenizer.decode(generation.response_ids, skip_special_tokens=True)
    return Answer(
        prompt=prompt,
        decoding=decoding,
        sample=sample,
        response_ids=generation.response_ids,
        text=str(text),
        finish_reason=generation.finish_reason,
    )


def _release_memory() -> None:
    """Give the engine's weights and cache back before anything is scored."""
    gc.collect()
    torch.cuda.empty_cache()
