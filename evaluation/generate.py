"""A model's answers to the test prompts, sampled and greedy, in one start of the generation engine."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from data_processing.pace import Pace
from evaluation.job import Answer, EvaluationJob, Prompt
from evaluation.row_reading import read_prompts
from rlhf_core.batching.templates import Renderer
from rlhf_core.models.load import load_tokenizer
from rlhf_core.rollout.base import Generation, Generator, Sampling, Tell, generate
from rlhf_core.rollout.choose import choose_engine, fallback_note, make_generator

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What the engine runs at once; bounded by its key-value cache anyway.
_MAX_SEQUENCES = 64


def generate_answers(job: EvaluationJob) -> list[Answer]:
    """Answers to the test prompts that are measured (see evaluation/rows.py), prompt by prompt, one decoding after the other.

    The engine is gone when this returns. Raises `ConfigError` where no prompt leaves room for an answer, `DataError` where
    too many do not or there are no test prompts.
    """
    tokenizer = load_tokenizer(job.model, trust_remote_code=True)
    renderer = Renderer(tokenizer, None)
    prompts = read_prompts(job, renderer)
    generator = _start(job, prompts)
    for note in generator.notes:
        job.events.warn_once(note)
    job.events.metrics(0, generator.metrics)
    try:
        tell = _teller(job, len(prompts))
        return [
            answer for decoding in _decodings(job) for answer in _answers(job, generator, renderer, prompts, decoding, tell=tell)
        ]
    finally:
        del generator
        _release_memory()


def _start(job: EvaluationJob, prompts: Sequence[Prompt]) -> Generator:
    config = job.config
    longest = max(len(prompt.ids) for prompt in prompts)
    engine, reason = choose_engine(config.engine, job.model, config.gpus)
    job.events.progress(0, 1, f"generating with {engine.value} ({reason})")
    for note in fallback_note(config.engine, engine, reason):
        job.events.warn_once(note)
    return make_generator(
        engine,
        job.model,
        dtype=config.precision,
        max_model_len=longest + config.max_new_tokens,
        max_num_seqs=_MAX_SEQUENCES,
        kv_cache_mib=config.kv_cache_mib,
        gpu_memory_fraction=0.4,
        threads=config.threads,
        trust_remote_code=True,
        gpus=config.gpus,
    )


def _decodings(job: EvaluationJob) -> Iterator[str]:
    yield "sampled"
    if job.config.greedy:
        yield "greedy"


def _teller(job: EvaluationJob, n_prompts: int) -> Callable[[str], Tell]:
    """What tells of a decoding's part of all answers, with the time that all of them still take."""
    sampled = n_prompts * job.config.samples_per_prompt
    total, pace = sampled + n_prompts * job.config.greedy, Pace()

    def of(decoding: str) -> Tell:
        start, count = (sampled, n_prompts) if decoding == "greedy" else (0, sampled)

        def tell(share: float) -> None:
            if pace.is_due():
                done = start + share * count
                job.events.progress(int(done), total, f"generating answers: {int(done)} of {total}{pace.left(done, total)}")

        return tell

    return of


def _answers(
    job: EvaluationJob,
    generator: Generator,
    renderer: Renderer,
    prompts: Sequence[Prompt],
    decoding: str,
    *,
    tell: Callable[[str], Tell],
) -> Iterator[Answer]:
    greedy = decoding == "greedy"
    sampling = Sampling(
        temperature=job.config.temperature,
        max_new_tokens=job.config.max_new_tokens,
        n=1 if greedy else job.config.samples_per_prompt,
        greedy=greedy,
        stop_ids=tuple(renderer.stop_ids),
    )
    groups = generate(generator, [prompt.ids for prompt in prompts], sampling, job.seed, tell(decoding))
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
