"""The generation worker of online training, a plain class that `Group` runs as a Ray actor."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from rlhf_core.cluster.memory import Measured, Usage
from rlhf_core.cluster.weights import Arrays, to_tensors
from rlhf_core.precision import Dtype
from rlhf_core.rollout.base import Generation, Generator, Sampling, in_groups
from rlhf_core.rollout.conversations import Conversations, Opening
from rlhf_core.settings.environment import EnvironmentSettings
from rlhf_core.settings.rollout import RolloutEngine

Listener = Callable[[int, Generation], None]


@dataclass(frozen=True, slots=True)
class RolloutSetup:
    """What the generation worker is started with; sizes in tokens, responses and MiB."""

    engine: RolloutEngine
    model: Path
    dtype: Dtype
    max_model_len: int
    max_num_seqs: int
    kv_cache_mib: int
    gpu_memory_fraction: float
    threads: int
    trust_remote_code: bool
    gpus: float
    environment: EnvironmentSettings = field(default_factory=EnvironmentSettings)


@dataclass(frozen=True, slots=True)
class Sampler:
    """The engine that runs and why, lines for people on what it does slowly, and the same as metrics."""

    engine: str
    notes: tuple[str, ...]
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class Sampled:
    """Responses, a group a prompt, and how long drawing them took."""

    groups: list[list[Generation]]
    seconds: float


class RolloutWorker(Measured):
    """The sampler: a generation engine in a process of its own."""

    generator: Generator
    conversations: Conversations | None = None

    def setup(self, setup: RolloutSetup) -> Sampler:
        """Start the engine."""
        from rlhf_core.rollout.choose import choose_engine, fallback_note, make_generator

        chosen, reason = choose_engine(setup.engine, setup.model, setup.gpus)
        self.generator = make_generator(
            chosen,
            setup.model,
            dtype=setup.dtype,
            max_model_len=setup.max_model_len,
            max_num_seqs=setup.max_num_seqs,
            kv_cache_mib=setup.kv_cache_mib,
            gpu_memory_fraction=setup.gpu_memory_fraction,
            threads=setup.threads,
            trust_remote_code=setup.trust_remote_code,
            gpus=setup.gpus,
        )
        if setup.environment.is_given:
            self.conversations = _conversations(setup, self.generator)
        notes = (*fallback_note(setup.engine, chosen, reason), *self.generator.notes)
        return Sampler(f"{self.generator.name} ({reason})", notes, dict(self.generator.metrics))

    def generate(self, openings: Sequence[Opening], sampling: Sampling, seed: int, listener: Listener | None = None) -> Sampled:
        """Answer prompts, as `Generator.stream` does, or hold conversations that begin with them.

        `listener` hears of each answer, with the place of its prompt, when it has ended.
        """
        start = time.monotonic()
        ended: dict[int, Generation] = {}
        drawn = (
            self.generator.stream([opening.ids for opening in openings], sampling, seed)
            if self.conversations is None
            else self.conversations.stream(openings, sampling, seed)
        )
        for number, generation in drawn:
            ended[number] = generation
            if listener is not None:
                listener(number // sampling.n, generation)
        return Sampled(in_groups(ended, sampling.n), time.monotonic() - start)

    def usage(self) -> Usage:
        """With what the processes of the engine hold now, and have taken."""
        own, children = super().usage(), psutil.Process().children(recursive=True)
        memory_mib = sum(child.memory_info().rss for child in children) / 2**20
        cpu_seconds = sum(sum(child.cpu_times()[:2]) for child in children)
        return Usage(own.memory_mib + memory_mib, own.cpu_seconds + cpu_seconds)

    def update_weights(self, weights: Arrays, version: int) -> None:
        """As `Generator.update_weights`, with what `to_arrays` made of the weights."""
        self.generator.update_weights(to_tensors(weights), version)


def _conversations(setup: RolloutSetup, generator: Generator) -> Conversations:
    """What holds conversations with the environment. Raises `ConfigError` for a parser of tool calls that is not there."""
    from rlhf_core.batching.templates import Renderer
    from rlhf_core.models.load import load_tokenizer
    from rlhf_core.rollout.conversations import plain_turn
    from rlhf_core.rollout.tool_calls import tool_reader

    renderer = Renderer(load_tokenizer(setup.model, trust_remote_code=setup.trust_remote_code))
    parser = setup.environment.tool_parser
    reader = plain_turn if parser is None else tool_reader(parser, renderer.tokenizer)
    return Conversations(generator, renderer, setup.environment, setup.max_model_len, read_turn=reader)
