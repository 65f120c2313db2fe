"""Sources that wait are asked as soon as responses end, while others are still drawn; what they said is there when it is wanted."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from rlhf_core.rewards.base import ScoredResponse, Scorer, Scores
from rlhf_core.rewards.errors import TransientRewardError

# Calls at a time; how many requests they make at a time is the source's own to bound.
_CALLS = 64

_Key = tuple[str, int, tuple[int, ...]]


class Ahead:
    """Calls of a scorer that are under way, by response: same prompt, round and tokens are the same response."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self._pool: ThreadPoolExecutor | None = None
        self._begun: dict[_Key, tuple[Future[Scores], int]] = {}

    def begin(self, responses: Sequence[ScoredResponse]) -> None:
        """Ask for those of `responses` that were not asked for yet, in one call."""
        fresh = {_key(response): response for response in responses if _key(response) not in self._begun}
        if not fresh:
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_CALLS, thread_name_prefix="reward")
        call = self._pool.submit(lambda: Scores.of(self._scorer.score(list(fresh.values()))))
        self._begun |= {key: (call, place) for place, key in enumerate(fresh)}

    def score(self, responses: Sequence[ScoredResponse]) -> Scores:
        """What was asked for before and, in one call, what was not. Raises what the scorer does.

        A call ahead that failed for a while is forgotten: those responses are asked for anew.
        """
        places = [self._found(response) for response in responses]
        missing = [response for response, place in zip(responses, places, strict=True) if place is None]
        asked = Scores.of(self._scorer.score(missing)) if missing else Scores(())
        fresh = iter(range(len(missing)))
        scores = Scores.joined([asked.at(next(fresh)) if place is None else place for place in places])
        last = max((response.step for response in responses), default=-1)
        self._begun = {key: call for key, call in self._begun.items() if key[1] > last}
        return scores

    def _found(self, response: ScoredResponse) -> Scores | None:
        """What a call ahead says of the response, waited for; None where there is none."""
        if (begun := self._begun.get(_key(response))) is None:
            return None
        call, place = begun
        try:
            return call.result().at(place)
        except TransientRewardError:
            self._begun = {key: other for key, other in self._begun.items() if other[0] is not call}
            return None


def _key(response: ScoredResponse) -> _Key:
    return response.prompt_id, response.step, tuple(response.response_ids)
