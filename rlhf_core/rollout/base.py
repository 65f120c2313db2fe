"""What every generation engine takes and gives back. Engines live in their own files; nothing here generates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from data_processing.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

FinishReason = Literal["stop", "length"]
# The environment said so; turns, tokens or time were over; the model's turn was cut; the environment failed.
EndedBy = Literal["done", "turns", "tokens", "time", "cut", "failed"]
# Is told, now and then, which share of a call's responses is drawn.
Tell = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How responses are drawn: `n` a prompt, each at most `max_new_tokens` long, ended by any of `stop_ids`.

    There is no top-p, top-k or minimum length on purpose: truncation would make the reported log-probs those of another
    distribution than the trainer's. `greedy` ignores `temperature` and gives all `n` the same response.
    """

    temperature: float
    max_new_tokens: int
    n: int
    greedy: bool
    stop_ids: tuple[int, ...]


@dataclass(slots=True)
class Trajectory:
    """What a response of several turns is made of; an environment has spoken between them.

    `messages` are all turns after the prompt, of both sides; `turn_ends` the places among the response's ids of the tokens that end the
    model's own, and `rewards` what each of those earned, None for nothing. `ended_by` says why there are no more, `failure` what
    broke it off; `metrics` are numbers of the environment, added up.
    """

    messages: list[dict[str, Any]] = field(default_factory=list)
    turn_ends: list[int] = field(default_factory=list)
    rewards: list[float | None] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    ended_by: EndedBy = "done"
    failure: str | None = None


@dataclass(slots=True)
class Generation:
    """One response, exactly as sampled.

    `response_ids` ends with the stop token where one was drawn. `logprobs` (nats, one an id) are those of the distribution
    that was sampled from, log-softmax(logits / temperature), and at temperature 1 for greedy decoding.
    `weight_version` says which weights drew it. `learnt` has, for each id, whether the model drew it and learns from it; None
    where it drew all. `trajectory` is there where it has several turns.
    """

    response_ids: list[int]
    logprobs: list[float]
    finish_reason: FinishReason
    weight_version: int = 0
    learnt: list[bool] | None = None
    trajectory: Trajectory | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Generation:
        """What `dataclasses.asdict` made of one."""
        trajectory = values.get("trajectory")
        return cls(**{**values, "trajectory": None if trajectory is None else Trajectory(**trajectory)})

    @property
    def is_learnt(self) -> list[bool]:
        """`learnt`, a flag an id."""
        return [True] * len(self.response_ids) if self.learnt is None else self.learnt


class Generator(Protocol):
    """A model that answers prompts and whose weights can be replaced in place."""

    @property
    def name(self) -> str:
        """Which engine this is: "vllm" or "hf"."""
        ...

    @property
    def weight_version(self) -> int:
        """The version given with the latest `update_weights`; 0 for the weights of the model folder."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines for people on whatever it does in a slower way than it might."""
        ...

    @property
    def metrics(self) -> Mapping[str, float]:
        """The same as numbers, 1 for what is fastest."""
        ...

    def stream(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int, tell: Tell | None = None
    ) -> Iterator[tuple[int, Generation]]:
        """Answer token-id prompts, `sampling.n` times each, and give each generation when it has ended.

        With its number: `sampling.n` times that of the prompt, and which of its answers it is. The same seed gives the same draws.
        `tell` hears how far it is. Raises `ConfigError` for an empty prompt or one that leaves no room for a response.
        """
        ...

    @property
    def in_batches(self) -> bool:
        """Whether what was begun is drawn in one batch, so that what begins later waits for its end."""
        ...

    def begin(self, number: int, prompt: Sequence[int], sampling: Sampling, seed: int) -> None:
        """Begin one answer (`sampling.n` is 1) under a number of the caller's; raises as `stream` does."""
        ...

    def ended(self) -> list[tuple[int, Generation]]:
        """Draw for a while at what was begun, and give what has ended meanwhile, which may be nothing."""
        ...

    def update_weights(self, state: Mapping[str, Tensor], version: int) -> None:
        """Replace all weights by `state` (names as in the model folder); every later sample carries `version`."""
        ...


def generate(
    generator: Generator, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int, tell: Tell | None = None
) -> list[list[Generation]]:
    """All that `generator.stream` gives, in order, a list a prompt."""
    return in_groups(dict(generator.stream(prompts, sampling, seed, tell)), sampling.n)


def in_groups(ended: Mapping[int, Generation], n: int) -> list[list[Generation]]:
    """Generations by their numbers as a list a prompt, `n` in each."""
    return [[ended[first + i] for i in range(n)] for first in range(0, len(ended), n)]


def check_prompts(prompts: Sequence[Sequence[int]], max_model_len: int) -> None:
    """Raise `ConfigError` naming the first prompt that is empty or fills the whole context of `max_model_len` tokens."""
    for index, prompt in enumerate(prompts):
        if not 0 < len(prompt) < max_model_len:
            raise ConfigError(
                f"prompt {index} has {len(prompt)} tokens; with max_model_len={max_model_len} it must have 1 to {max_model_len - 1}:"
                " shorten the prompt or raise max_length_tokens"
            )
