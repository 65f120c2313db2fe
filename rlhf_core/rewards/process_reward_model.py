"""A process reward model as a reward: how likely each step of an answer is right, read where the step ends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rlhf_core.batching.rows import TokenRow
from rlhf_core.models.load import load_tokenizer
from rlhf_core.models.passes import Tell
from rlhf_core.rewards.base import ScoredResponse, Scores
from rlhf_core.rewards.reward_model import ModelScorer, loading
from rlhf_core.settings.rewards.models import ProcessRewardModelReward

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rlhf_core.rewards.build import Around


class ProcessScorer(ModelScorer):
    """Scores the steps of an answer, which `separator` ends.

    With `of_steps` "each" a step earns 2 p - 1 at its last token, p being its probability to be right: a step that may be either earns
    nothing, so that more of them are not worth more. Otherwise the answer earns the least, the mean or the last p.
    """

    name = "process_reward_model"

    def __init__(
        self, model: Path, policy_model: Path, *, of_steps: Literal["each", "min", "mean", "last"], separator: str, **loading: Any
    ) -> None:
        super().__init__(model, policy_model, **loading)
        self._of_steps, self._separator = of_steps, separator
        self._tokenizer = load_tokenizer(policy_model, trust_remote_code=loading.get("trust_remote_code", False))

    def score(self, responses: Sequence[ScoredResponse], tell: Tell = lambda done, total: None) -> Scores:
        """What `of_steps` says, a number a response: 0 with "each", which rewards tokens. Raises as a reward model does."""
        ends = [step_ends(self._tokenizer, response.response_ids, self._separator) for response in responses]
        rows = [_read_at(response, own) for response, own in zip(responses, ends, strict=True)]
        chances = [[_sigmoid(value) for value in values] for values in self.values(rows, tell, per_target=True)]
        means = [math.fsum(own) / len(own) for own in chances]
        metrics = {"steps": [float(len(own)) for own in ends], "least": [min(own) for own in chances], "mean": means}
        if self._of_steps == "each":
            tokens = [
                _at(own, [2 * p - 1 for p in found], len(response.response_ids))
                for response, own, found in zip(responses, ends, chances, strict=True)
            ]
            return Scores([0.0] * len(responses), metrics, tokens)
        of_answer = {"mean": means, "min": metrics["least"], "last": [own[-1] for own in chances]}
        return Scores(of_answer[self._of_steps], metrics)


def build(source: ProcessRewardModelReward, around: Around) -> ProcessScorer:
    """From settings."""
    model = around.scorer(source, source.input)
    return ProcessScorer(model, around.policy_model, of_steps=source.of_steps, separator=source.step_separator, **loading(around))


def step_ends(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], separator: str) -> list[int]:
    """Places among `ids` of the tokens that end a step: the last before the first that has a character of the next; and the last of all.

    As `Renderer.steps` has it for a process reward model's own rows, of which these tokens are the same.
    """
    text = _text(tokenizer, ids)
    ends: list[int] = []
    place = text.find(separator)
    while place >= 0:
        after = place + len(separator)
        start = after + len(text[after:]) - len(text[after:].lstrip())
        if start == len(text):
            break
        if text[:place].strip():
            end = _last_token_up_to(tokenizer, ids, start)
            if end > (ends[-1] if ends else -1):
                ends.append(end)
        place = text.find(separator, start)
    last = len(ids) - 1
    return [*(end for end in ends if end < last), last]


def _last_token_up_to(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], characters: int) -> int:
    """The place of the last token that ends within the first `characters`; -1 where not even the first does."""
    low, high = 0, len(ids)
    while low < high:
        middle = (low + high + 1) // 2
        if len(_text(tokenizer, ids[:middle])) <= characters:
            low = middle
        else:
            high = middle - 1
    return low - 1


def _text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _read_at(response: ScoredResponse, ends: Sequence[int]) -> TokenRow:
    start = len(response.prompt_ids)
    return TokenRow.read_at([*response.prompt_ids, *response.response_ids], [start + end for end in ends])


def _at(places: Sequence[int], values: Sequence[float], length: int) -> list[float]:
    rewards = [0.0] * length
    for place, value in zip(places, values, strict=True):
        rewards[place] = value
    return rewards


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))
