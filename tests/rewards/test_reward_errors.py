"""What a reward raises: what may work at the next try is tried again, and nothing else is."""

import http.client
import urllib.error
from collections.abc import Sequence
from email.message import Message

import httpx
import pytest
import requests

from rlhf_core.rewards.base import ScoredResponse
from rlhf_core.rewards.compose import ComposedReward, Retries
from rlhf_core.rewards.errors import TransientRewardError, is_transient
from rlhf_core.rewards.weighing import Weighing
from tasks.runtime.contract.failures import StageFailedError, error_of, failure_of

RESPONSES = [ScoredResponse("p0", [], None, [1], [2], "text")]


class Away:
    """Fails `times` times, then answers."""

    name = "judge"

    def __init__(self, times: int) -> None:
        self.calls, self.times = 0, times

    def score(self, responses: Sequence[ScoredResponse]) -> list[float | None]:
        self.calls += 1
        if self.calls <= self.times:
            raise TransientRewardError(f"no answer to call {self.calls}")
        return [1.0] * len(responses)


def test_a_source_that_is_away_for_a_while_is_asked_again() -> None:
    away = Away(2)
    rewards = ComposedReward([(away, Weighing(1.0))], Retries(count=2, wait_s=0.01)).score(RESPONSES)
    assert rewards.total == [1.0]
    assert away.calls == 3
    assert rewards.asked_again == tuple(f"reward 'judge' is asked again: no answer to call {n}" for n in (1, 2))


def test_a_source_that_stays_away_ends_the_stage_as_infrastructure_does() -> None:
    with pytest.raises(
        TransientRewardError, match=r"'judge' failed 3 times in a row, at last with: no answer to call 3"
    ) as caught:
        ComposedReward([(Away(9), Weighing(1.0))], Retries(count=2, wait_s=0.01)).score(RESPONSES)
    failure = failure_of(caught.value)
    ended_with = error_of(failure.exit_code, failure.message)
    assert isinstance(ended_with, StageFailedError) and not ended_with.final


def test_waits_double_up_to_a_minute() -> None:
    assert [Retries(wait_s=2.0).pause_s(tries) for tries in (1, 2, 3, 6, 60)] == [2.0, 4.0, 8.0, 60.0, 60.0]


def http_errors(status: int) -> list[Exception]:
    """The error of that status from each client."""
    answer = requests.Response()
    answer.status_code = status
    request = httpx.Request("POST", "http://judge/")
    return [
        urllib.error.HTTPError("http://judge/", status, "no", Message(), None),
        requests.HTTPError("no", response=answer),
        httpx.HTTPStatusError("no", request=request, response=httpx.Response(status, request=request)),
    ]


@pytest.mark.parametrize(
    "error",
    [
        TimeoutError(),
        ConnectionResetError(),
        OSError("no route to host"),
        TransientRewardError("busy"),
        urllib.error.URLError("name not known"),
        http.client.IncompleteRead(b""),
        requests.ConnectionError(),
        requests.ReadTimeout(),
        httpx.ReadTimeout(""),
        httpx.ConnectError(""),
        *http_errors(503),
        *http_errors(429),
    ],
    ids=repr,
)
def test_what_may_work_at_the_next_try_is_transient(error: Exception) -> None:
    assert is_transient(error)


@pytest.mark.parametrize(
    "error",
    [
        KeyError("score"),
        ValueError("not a number"),
        RuntimeError("shapes"),
        FileNotFoundError("rules.json"),
        PermissionError("rules.json"),
        requests.exceptions.MissingSchema("no scheme"),
        *http_errors(401),
        *http_errors(404),
    ],
    ids=repr,
)
def test_what_can_never_work_is_not(error: Exception) -> None:
    assert not is_transient(error)
