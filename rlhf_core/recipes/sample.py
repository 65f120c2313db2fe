"""Answers of a model to the prompts of a data folder, judged, and a table made of them: rejection sampling and on-policy pairs.

The sampled tokens are kept beside the resume folder's other things while it goes on, so an attempt that is ended leaves what it
has drawn to the next one.
"""

from __future__ import annotations

import gc
import json
import math
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_processing.errors import DataError
from data_processing.pace import Pace
from data_processing.schemas import to_table, write_table
from data_processing.turns import pack_turns
from rlhf_core.batching.templates import Renderer
from rlhf_core.events import EventLog
from rlhf_core.models.folder import check_model_folder
from rlhf_core.models.load import load_tokenizer
from rlhf_core.recipes.parts import write_part
from rlhf_core.recipes.prompts import Limits, Prompt, read_prompts, scored_response
from rlhf_core.recipes.stop import stop_if_requested_while
from rlhf_core.rewards.base import ScoredResponse
from rlhf_core.rewards.build import Around, build_reward
from rlhf_core.rollout.base import Generation, Generator, Sampling, generate
from rlhf_core.rollout.choose import choose_engine, fallback_note, make_generator
from rlhf_core.settings.own_answers import SampledTable, SampleSettings
from rlhf_core.settings.training import EngineSettings

# What a stop costs at most.
PROMPTS_A_PART = 32


@dataclass(frozen=True)
class SampleJob:
    """Which prompts of `data` are answered by `model`, and where the table goes: below `output`, `<table>/<split>.parquet`.

    `scorers` are Hugging Face folders of trained reward models by the names of the inputs, services are asked on this machine and at
    `allowed_hosts`, `model_name` tells models apart: another one is asked other prompts.
    """

    settings: SampleSettings
    table: SampledTable
    limits: Limits
    engine: EngineSettings
    stall_after_s: float
    model: Path
    model_name: str
    scorers: Mapping[str, Path]
    allowed_hosts: tuple[str, ...]
    data: Path
    output: Path
    resume: Path
    seed: int
    events: EventLog


@dataclass(frozen=True, slots=True)
class Judged:
    """The answers to a prompt with what they are worth, None for one that cannot be learnt from."""

    prompt: Prompt
    answers: list[tuple[float, str] | None]


def sample_table(job: SampleJob) -> dict[str, float]:
    """Draw, judge and write the table; returns what the stage's summary says of it.

    Raises `ConfigError`, `DataError` where no row comes of it, and `PreemptedError` (what was drawn is kept).
    """
    check_model_folder(job.model, trust_remote_code=True, max_length_tokens=job.limits.max_length_tokens)
    renderer = Renderer(load_tokenizer(job.model, trust_remote_code=True))
    prompts = {split: _chosen(job, renderer, split) for split in ("train", "validation")}
    drawn = _draw(job, renderer, prompts["train"] + prompts["validation"])
    judged, facts = _judge(job, renderer, drawn)
    for split, chosen in prompts.items():
        ids = {prompt.id for prompt in chosen}
        rows = list(_rows(job, [each for each in judged if each.prompt.id in ids]))
        facts[f"{split}_rows"] = len(rows)
        if rows:
            write_table(job.table, to_table(job.table, rows), job.output / job.table / f"{split}.parquet")
    if not facts["train_rows"]:
        raise DataError(
            f"none of the {len(prompts['train'])} prompts gave a row for the table '{job.table}': {_WHY[job.table]}; of the answers "
            f"{facts['truncated_share']:.0%} were cut and {facts['invalid_share']:.0%} have no valid reward"
        )
    return facts


_WHY: Mapping[SampledTable, str] = {
    "sft": "no answer ended and is worth min_reward; lower it, raise rollout.max_new_tokens, or look at the reward",
    "preference": "no prompt has two answers that ended and differ by more than min_margin; raise samples_per_prompt, lower "
    "min_margin, or look at the reward",
    "unpaired": "no answer ended; raise rollout.max_new_tokens",
    "prompts": "there were none",
}


def _chosen(job: SampleJob, renderer: Renderer, split: str) -> list[Prompt]:
    """The prompts of a split that are answered: other ones for another model, in an order that hangs on the seed."""
    limit = job.settings.max_prompts if split == "train" else job.settings.max_validation_prompts
    if split == "validation" and not (limit and (job.data / "prompts" / f"{split}.parquet").is_file()):
        return []
    prompts = read_prompts(job.data, job.limits, job.events, renderer, split)
    order = random.Random(f"{job.seed} {job.model_name} {split}").sample(prompts, len(prompts))
    return order[:limit]


def _draw(job: SampleJob, renderer: Renderer, prompts: Sequence[Prompt]) -> list[tuple[Prompt, list[Generation]]]:
    """Answers to all prompts, those of earlier attempts from their files; the engine is gone afterwards."""
    parts = job.resume / "sampled"
    parts.mkdir(parents=True, exist_ok=True)
    places = {first: parts / f"part-{first:06d}.json" for first in range(0, len(prompts), PROMPTS_A_PART)}
    missing = [first for first, place in places.items() if not place.is_file()]
    if missing:
        generator, total, pace = _start(job), len(places), Pace(len(places) - len(missing))
        for number, first in enumerate(missing, start=total - len(missing)):
            stop_if_requested_while(job.resume, "answers were drawn")
            job.events.progress(number, total, f"drawing answers: {first} of {len(prompts)} prompts{pace.left(number, total)}")
            write_part(places[first], _drawn(job, renderer, generator, prompts, first))
        del generator
        gc.collect()
    kept: list[list[dict[str, Any]]] = [
        group for place in places.values() for group in json.loads(place.read_text(encoding="utf-8"))
    ]
    return [(prompt, [Generation.of(answer) for answer in group]) for prompt, group in zip(prompts, kept, strict=True)]


def _start(job: SampleJob) -> Generator:
    rollout = job.settings.rollout
    chosen, reason = choose_engine(rollout.engine, job.model, job.engine.gpus_per_rank)
    generator = make_generator(
        chosen,
        job.model,
        dtype=job.engine.precision,
        max_model_len=job.limits.max_length_tokens,
        max_num_seqs=min(256, PROMPTS_A_PART * job.settings.samples_per_prompt),
        kv_cache_mib=rollout.kv_cache_mib,
        gpu_memory_fraction=rollout.gpu_memory_fraction,
        threads=rollout.threads,
        trust_remote_code=True,
        gpus=job.engine.gpus_per_rank,
    )
    for note in (*fallback_note(rollout.engine, chosen, reason), *generator.notes):
        job.events.warn_once(note)
    return generator


def _drawn(
    job: SampleJob, renderer: Renderer, generator: Generator, prompts: Sequence[Prompt], first: int
) -> list[list[dict[str, Any]]]:
    """Answers to the part of the prompts that begins at `first`, as JSON; a part's draws hang on its place alone."""
    sampling = Sampling(
        temperature=job.settings.rollout.temperature,
        max_new_tokens=job.settings.rollout.max_new_tokens,
        n=job.settings.samples_per_prompt,
        greedy=False,
        stop_ids=tuple(renderer.stop_ids),
    )
    seed = (job.seed * 1_000_003 + first * sampling.n) % 2**31
    groups = generate(generator, [prompt.ids for prompt in prompts[first : first + PROMPTS_A_PART]], sampling, seed)
    return [[asdict(generation) for generation in group] for group in groups]


def _judge(
    job: SampleJob, renderer: Renderer, drawn: Sequence[tuple[Prompt, list[Generation]]]
) -> tuple[list[Judged], dict[str, float]]:
    """The answers that can be learnt from, by prompt, and facts on all of them."""
    reward = build_reward(
        job.settings.rewards,
        Around.of_stage(
            job.model,
            job.engine,
            job.scorers,
            stall_after_s=job.stall_after_s,
            resume=job.resume,
            allowed_hosts=job.allowed_hosts,
        ),
    )
    judged: list[Judged] = []
    values: dict[str, list[float]] = defaultdict(list)
    n_answers, n_cut, pace = 0, 0, Pace()
    for first in range(0, len(drawn), PROMPTS_A_PART):
        job.events.progress(first, len(drawn), f"judging answers: {first} of {len(drawn)} prompts{pace.left(first, len(drawn))}")
        part = drawn[first : first + PROMPTS_A_PART]
        responses = [scored_response(prompt, g, renderer.tokenizer) for prompt, group in part for g in group]
        rewards = reward.score(responses)
        for note in rewards.notes:
            job.events.warn_once(note)
        if rewards.invalid_share:
            job.events.warn(f"{rewards.invalid_share:.0%} of {len(responses)} answers are left out: {rewards.why_invalid()}")
        for name, numbers in {"": rewards.worth, **{f"/{name}": own for name, own in rewards.by_source.items()}}.items():
            values[f"reward{name}"] += [number for number in numbers if number is not None and not math.isnan(number)]
        n_answers += len(responses)
        n_cut += sum(response.finish_reason == "length" for response in responses)
        worth = iter(zip(rewards.worth, responses, strict=True))
        judged += [Judged(prompt, [_learnable(*next(worth)) for _ in group]) for prompt, group in part]
    means = {name: sum(numbers) / len(numbers) for name, numbers in values.items() if numbers}
    shares = {"truncated_share": n_cut / n_answers, "invalid_share": 1 - len(values["reward"]) / n_answers}
    return judged, {"answers": n_answers, **means, **shares}


def _learnable(value: float | None, response: ScoredResponse) -> tuple[float, str] | None:
    """An answer and its worth; None without one, and for a cut answer: learnt as a whole turn it would teach to stop where it was cut."""
    return None if value is None or response.finish_reason == "length" else (value, response.text)


def _rows(job: SampleJob, judged: Sequence[Judged]) -> Iterator[dict[str, Any]]:
    settings = job.settings
    for each in judged:
        prompt, answers = each.prompt, [answer for answer in each.answers if answer is not None]
        if job.table == "prompts":
            yield _with_pass_rate(prompt, sum(_is_good(settings, value) for value, _ in answers) / len(each.answers))
            continue
        if not answers:
            continue
        # The first of equals, so that the choice does not hang on how sorting goes.
        best, worst = max(answers, key=lambda a: a[0]), min(answers, key=lambda a: a[0])
        asked = [dict(message) for message in prompt.messages]
        if job.table == "sft" and (settings.min_reward is None or best[0] >= settings.min_reward):
            yield _packed({"id": prompt.id, "messages": [*asked, _turn(best[1])]}, prompt)
        elif job.table == "preference" and best[0] - worst[0] > settings.min_margin:
            pair = {"chosen": [_turn(best[1])], "rejected": [_turn(worst[1])], "margin": best[0] - worst[0]}
            yield _packed({"id": prompt.id, "prompt": asked, **pair}, prompt)
        elif job.table == "unpaired":
            for number, (value, text) in enumerate(answers):
                good = _is_good(settings, value)
                row = {"id": f"{prompt.id}-{number}", "prompt": asked, "response": [_turn(text)], "desirable": good}
                yield _packed(row, prompt)


def _is_good(settings: SampleSettings, value: float) -> bool:
    assert settings.min_reward is not None, "the settings say so"
    return value >= settings.min_reward


def _with_pass_rate(prompt: Prompt, rate: float) -> dict[str, Any]:
    """A row of the prompts table, as it was, with the share of its answers that were good; one that was cut is none."""
    extra = json.dumps({**prompt.columns, "pass_rate": rate})
    row = {"id": prompt.id, "prompt": [dict(message) for message in prompt.messages], "label": prompt.label}
    return _packed({**row, "extra": extra}, prompt)


def _packed(row: dict[str, Any], prompt: Prompt) -> dict[str, Any]:
    """A row of a table, with what the prompt's turns hold beside role and text, its tools and its source."""
    pack_turns(row)
    return {**row, "tools": prompt.tools, "source": prompt.source}


def _turn(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}
