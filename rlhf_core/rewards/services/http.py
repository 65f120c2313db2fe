"""A service that scores responses as a reward: batches are in flight side by side, and one that gets no answer fails alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rlhf_core.rewards.base import ScoredResponse, Scores
from rlhf_core.rewards.services.exchange import UnansweredError
from rlhf_core.rewards.services.forms import Form, form_of
from rlhf_core.rewards.services.service import Access, Post, Service
from rlhf_core.settings.rewards.services import HttpReward

if TYPE_CHECKING:
    from rlhf_core.rewards.build import Around

_PLACE = "rewards: kind 'http': url"


class HttpScorer:
    """Asks `service` for at most `batch_size` responses at a time, in its form."""

    name = "http"
    waits = True

    def __init__(self, service: Service, form: Form, batch_size: int) -> None:
        self._service, self._form, self._batch_size = service, form, batch_size
        self.notes = service.notes

    def score(self, responses: Sequence[ScoredResponse]) -> Scores:
        """What the service gave; NaN for the responses of a request without an answer that can be read. See `Service.ask_all`."""
        batches = [responses[start : start + self._batch_size] for start in range(0, len(responses), self._batch_size)]
        found = self._service.ask_all(self._ask, batches)
        return Scores.joined(
            [
                _unanswered(batch, part) if isinstance(part, UnansweredError) else part
                for batch, part in zip(batches, found, strict=True)
            ]
        )

    def _ask(self, post: Post, batch: Sequence[ScoredResponse]) -> Scores:
        return self._form.read(self._service.url, post(self._form.body(batch)), batch)


def build(source: HttpReward, around: Around) -> HttpScorer:
    """From settings. Raises `ConfigError` for an address that may not be asked and a key that is not there."""
    service = Service(source.url, Access.of(source, around), _PLACE)
    return HttpScorer(service, form_of(source.form, source.model, around.policy_model), source.batch_size)


def _unanswered(batch: Sequence[ScoredResponse], error: UnansweredError) -> Scores:
    return Scores([math.nan] * len(batch), failures=[str(error)] * len(batch))
