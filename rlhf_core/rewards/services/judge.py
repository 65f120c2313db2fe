"""A language model that judges as a reward: one verdict a response, asked for at a chat completions endpoint, kept, and within a budget."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any

from data_processing.errors import ConfigError
from rlhf_core.rewards.base import ScoredResponse, Scores
from rlhf_core.rewards.services.exchange import UnansweredError
from rlhf_core.rewards.services.kept_verdicts import KeptVerdicts, Verdict, key_of
from rlhf_core.rewards.services.service import Access, Post, Service
from rlhf_core.rewards.services.verdicts import Task, UnreadableError, asked_again
from rlhf_core.settings.rewards.rubrics import RUBRICS
from rlhf_core.settings.rewards.services import JudgeReward

if TYPE_CHECKING:
    from rlhf_core.rewards.build import Around

_PLACE = "rewards: kind 'judge': url"
_TRIES = 2  # of an answer without a verdict


class Budget:
    """How many verdicts may be asked for and how many tokens used up; None: any number. Requests on their way may exceed the tokens."""

    def __init__(self, max_calls: int | None, max_tokens: int | None) -> None:
        self._max_calls, self._max_tokens = max_calls, max_tokens
        self._calls = self._tokens = 0
        self._lock = Lock()
        self.why_over: str | None = None

    def take_call(self) -> None:
        """Raises `UnansweredError` where nothing is left."""
        with self._lock:
            if self._max_calls is not None and self._calls >= self._max_calls:
                self.why_over = f"the judge's budget is spent: {self._calls} calls of max_calls={self._max_calls}"
            elif self._max_tokens is not None and self._tokens >= self._max_tokens:
                self.why_over = f"the judge's budget is spent: {self._tokens} tokens of max_tokens_spent={self._max_tokens}"
            if self.why_over:
                raise UnansweredError(f"{self.why_over}; raise it and start the run again, which asks nothing twice")
            self._calls += 1

    def take_tokens(self, tokens: int | None) -> None:
        """Raises `ConfigError` where a limit is set and the judge does not say how many a call took."""
        if tokens is None and self._max_tokens is not None:
            raise ConfigError(
                f"max_tokens_spent={self._max_tokens}: the judge's answers do not say how many tokens they took (usage.total_tokens); "
                "set max_calls instead"
            )
        with self._lock:
            self._tokens += tokens or 0


class JudgeScorer:
    """Asks `service` for a verdict on each response by `task`; `request` are the fields of a request beside its messages.

    A verdict is known by the URL, the request, the task and what is judged; one that `kept` has is not asked for again.
    """

    name = "judge"
    waits = True

    def __init__(self, service: Service, task: Task, request: Mapping[str, Any], budget: Budget, kept: KeptVerdicts) -> None:
        self._service, self._task, self._request, self._budget, self._kept = service, task, request, budget, kept

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines for people: what is risky about the service, and that the budget is spent."""
        over = self._budget.why_over
        return self._service.notes + ((f"reward '{self.name}': {over}; further responses are invalid",) if over else ())

    def score(self, responses: Sequence[ScoredResponse]) -> Scores:
        """From 0 (the worst score) to 1 (the best); NaN where no verdict was had. Raises as `Service.ask_all` does."""
        keys = [key_of([self._service.url, self._request, self._task.identity(response)]) for response in responses]
        unknown = {key: response for key, response in zip(keys, responses, strict=True) if self._kept.get(key) is None}
        found = dict(zip(unknown, self._service.ask_all(self._ask, list(unknown.items())), strict=True))
        places = {key: i for i, key in reversed(list(enumerate(keys)))}
        first = [key in found and places[key] == i for i, key in enumerate(keys)]
        verdicts = [found.get(key) or self._kept.get(key) for key in keys]
        metrics: dict[str, Sequence[float | None]] = {
            "judge_tokens": [_tokens(verdict, is_first) for verdict, is_first in zip(verdicts, first, strict=True)],
            "cached": [float(isinstance(verdict, Verdict) and not new) for verdict, new in zip(verdicts, first, strict=True)],
        }
        rewards = [verdict.score if isinstance(verdict, Verdict) else math.nan for verdict in verdicts]
        failures = [str(verdict) if isinstance(verdict, UnansweredError) else None for verdict in verdicts]
        return Scores(rewards, metrics, failures=failures)

    def _ask(self, post: Post, unknown: tuple[str, ScoredResponse]) -> Verdict:
        key, response = unknown
        messages, spent = self._task.messages(response), list[int | None]()
        for _ in range(_TRIES):
            self._budget.take_call()
            said, tokens = self._completion(post({**self._request, "messages": messages}))
            self._budget.take_tokens(tokens)
            spent.append(tokens)
            try:
                score = self._task.read(said)
            except UnreadableError as error:
                why, messages = str(error), asked_again(messages, said, str(error))
                continue
            verdict = Verdict(score, None if None in spent else sum(n or 0 for n in spent))
            self._kept.keep(key, verdict)
            return verdict
        raise UnansweredError(f"{self._service.url} gave no verdict in {_TRIES} answers: {why}; the last was {said!r:.120}")

    def _completion(self, answer: Any) -> tuple[str, int | None]:
        """The text of a chat completion, and the tokens that it took with its request."""
        try:
            text = answer["choices"][0]["message"]["content"] or ""
            usage = answer.get("usage") or {}
            tokens = usage.get("total_tokens")
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise UnansweredError(f"{self._service.url} answered with {answer!r:.160}, which is no chat completion") from error
        return str(text), tokens if isinstance(tokens, int) else None


def build(source: JudgeReward, around: Around) -> JudgeScorer:
    """From settings. Raises `ConfigError` for an address that may not be asked and a key that is not there."""
    rubric = RUBRICS.get(source.rubric, source.rubric)
    task = Task(rubric, source.score_min, source.score_max, source.show_label)
    service = Service(f"{source.url.rstrip('/')}/chat/completions", Access.of(source, around), _PLACE)
    kept = KeptVerdicts(around.cache_folder, [service.url, source.model, rubric])
    return JudgeScorer(service, task, _request(source, task), Budget(source.max_calls, source.max_tokens_spent), kept)


def _request(source: JudgeReward, task: Task) -> dict[str, Any]:
    fields: dict[str, Any] = {"model": source.model, "temperature": 0, "max_tokens": source.max_tokens}
    if source.verdict_format == "json_object":
        fields["response_format"] = {"type": "json_object"}
    if source.verdict_format == "json_schema":
        schema = {"name": "verdict", "strict": True, "schema": task.schema}
        fields["response_format"] = {"type": "json_schema", "json_schema": schema}
    return {name: value for name, value in (fields | source.request).items() if value is not None}


def _tokens(verdict: Verdict | UnansweredError | None, is_first: bool) -> float | None:
    """What a response cost: nothing where its verdict was there already, None where that is not known."""
    if not isinstance(verdict, Verdict):
        return None
    if not is_first:
        return 0.0
    return None if verdict.tokens is None else float(verdict.tokens)
