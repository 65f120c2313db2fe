"""The forms in which services that score responses are asked and answer. Only the first is alignflow's own.

`openrlhf` is what its trainers send to `--remote_rm_url`; `vllm_score` and `vllm_classify` are the routes /score and /classify of vLLM,
asked for the number before any activation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from data_processing.errors import ConfigError
from rlhf_core.rewards.base import ScoredResponse, Scores
from rlhf_core.rewards.returned import read_returned
from rlhf_core.rewards.services.conversation_text import as_text
from rlhf_core.rewards.services.exchange import UnansweredError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Form(Protocol):
    """How one kind of service is asked, and answers."""

    def body(self, responses: Sequence[ScoredResponse]) -> Mapping[str, Any]:
        """The JSON of a request to score these."""
        ...

    def read(self, url: str, answer: Any, responses: Sequence[ScoredResponse]) -> Scores:
        """What the JSON of the answer says of them, in order. Raises `UnansweredError` for another form."""
        ...


class AlignflowForm:
    """Lists with an entry a response; an entry of the answer is what a Python reward function may return.

    Beside `rewards` there may be `failures`: a text where the service failed on a response, else null.
    """

    def body(self, responses: Sequence[ScoredResponse]) -> dict[str, Any]:
        """Messages, texts, labels, finish reasons, and the columns that any of the prompts has."""
        names = dict.fromkeys(name for response in responses for name in response.columns)
        return {
            "prompts": [[dict(message) for message in response.prompt] for response in responses],
            "responses": [response.text for response in responses],
            "labels": [response.label for response in responses],
            "columns": {name: [response.columns.get(name) for response in responses] for name in names},
            "finish_reasons": [response.finish_reason for response in responses],
        }

    def read(self, url: str, answer: Any, responses: Sequence[ScoredResponse]) -> Scores:
        """The entries of `rewards`, and `failures` where there are any."""
        failures = answer.get("failures") if isinstance(answer, Mapping) else None
        if failures is not None and (not isinstance(failures, list) or len(failures) != len(responses)):
            raise UnansweredError(f"{url} answered with 'failures' that are not one a response: give a text or null for each")
        return _answer(url, _field(url, answer, "rewards"), responses, failures)


@dataclass(frozen=True, slots=True)
class OpenRlhfForm:
    """Texts with the control tokens of the policy's chat template; `tokenizer` is the policy's.

    None stands for a policy that is not there yet, as in the trial before a run: texts then are without control tokens.
    """

    tokenizer: Tokenizer | None

    def body(self, responses: Sequence[ScoredResponse]) -> dict[str, Any]:
        """`query` is prompt and response as one text."""
        return {
            "query": [self._query(response) for response in responses],
            "prompts": [self._prompt(response) for response in responses],
            "labels": [response.label for response in responses],
        }

    def read(self, url: str, answer: Any, responses: Sequence[ScoredResponse]) -> Scores:
        """The numbers in `rewards`."""
        return _answer(url, _field(url, answer, "rewards"), responses)

    def _query(self, response: ScoredResponse) -> str:
        if self.tokenizer is None:
            return f"{as_text(response.prompt)}\n{response.text}"
        return self.tokenizer.decode([*response.prompt_ids, *response.response_ids], skip_special_tokens=False)

    def _prompt(self, response: ScoredResponse) -> str:
        if self.tokenizer is None:
            return as_text(response.prompt)
        return self.tokenizer.decode(list(response.prompt_ids), skip_special_tokens=False)


@dataclass(frozen=True, slots=True)
class VllmScoreForm:
    """Pairs of texts, of prompt and response; the service joins them as its model has it."""

    model: str | None

    def body(self, responses: Sequence[ScoredResponse]) -> dict[str, Any]:
        """`text_1` are the prompts, `text_2` the responses."""
        texts = {"text_1": [as_text(response.prompt) for response in responses], "text_2": [r.text for r in responses]}
        return _named(self.model) | texts | {"use_activation": False}

    def read(self, url: str, answer: Any, responses: Sequence[ScoredResponse]) -> Scores:
        """The `score` of each entry of `data`."""
        return _answer(url, [_field(url, entry, "score") for entry in _data(url, answer)], responses)


@dataclass(frozen=True, slots=True)
class VllmClassifyForm:
    """The very tokens that were sampled: the model at the service must have the policy's vocabulary."""

    model: str | None

    def body(self, responses: Sequence[ScoredResponse]) -> dict[str, Any]:
        """`input` are token ids of prompt and response."""
        ids = [[*response.prompt_ids, *response.response_ids] for response in responses]
        return _named(self.model) | {"input": ids, "use_activation": False}

    def read(self, url: str, answer: Any, responses: Sequence[ScoredResponse]) -> Scores:
        """The one number in `probs` of each entry of `data`; a model with several classes has no reward."""
        probs = [_field(url, entry, "probs") for entry in _data(url, answer)]
        if any(not isinstance(values, list) or len(values) != 1 for values in probs):
            raise UnansweredError(
                f"{url} answered with {probs[0]!r:.80} for a response: a reward model has one number, not classes"
            )
        return _answer(url, [values[0] for values in probs], responses)


def form_of(name: str, model: str | None, policy_model: Path) -> Form:
    """The form called `name`. Raises `ConfigError` where the policy has no tokenizer file that it needs."""
    if name == "openrlhf":
        return OpenRlhfForm(_tokenizer(policy_model))
    others: dict[str, Form] = {
        "alignflow": AlignflowForm(),
        "vllm_score": VllmScoreForm(model),
        "vllm_classify": VllmClassifyForm(model),
    }
    return others[name]


def _tokenizer(policy_model: Path) -> Tokenizer | None:
    from tokenizers import Tokenizer

    if policy_model == Path():
        return None
    path = policy_model / "tokenizer.json"
    if not path.is_file():
        raise ConfigError(
            f"rewards: form 'openrlhf' needs {path}, which is not there: use a model with a fast tokenizer, or another form"
        )
    return Tokenizer.from_file(str(path))


def _named(model: str | None) -> dict[str, Any]:
    return {} if model is None else {"model": model}


def _field(url: str, value: Any, name: str) -> Any:
    if not isinstance(value, Mapping) or name not in value:
        raise UnansweredError(f"{url} answered with {value!r:.120}, which has no '{name}'; is it asked in the right form?")
    return value[name]


def _data(url: str, answer: Any) -> list[Any]:
    """The entries of `data` in the order of the request."""
    data = _field(url, answer, "data")
    if not isinstance(data, list):
        raise UnansweredError(f"{url} answered with 'data' that is no list, but {data!r:.80}")
    places = [_field(url, entry, "index") for entry in data]
    if sorted(map(str, places)) != sorted(map(str, range(len(data)))):
        raise UnansweredError(f"{url} answered with the indices {places!r:.80}: each must be there once, from 0 on")
    return sorted(data, key=lambda entry: int(entry["index"]))


def _answer(url: str, values: Any, responses: Sequence[ScoredResponse], failures: Sequence[Any] | None = None) -> Scores:
    lengths = [len(response.response_ids) for response in responses]
    try:
        returned = read_returned(url, values, lengths)
    except ConfigError as error:  # of a function that is final; a service may answer the next request well
        raise UnansweredError(str(error).replace("reward function", "the service", 1)) from error
    whys = [
        str(given) if given else f"{url} gave NaN" if number is not None and math.isnan(number) else None
        for number, given in zip(returned.rewards, failures or [None] * len(responses), strict=True)
    ]
    rewards = [number if why is None else math.nan for number, why in zip(returned.rewards, whys, strict=True)]
    return Scores(rewards, returned.metrics, returned.token_rewards, whys)
