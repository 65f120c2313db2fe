"""One request to a service and its answer: tried again, with growing waits, for as long as that may help."""

from __future__ import annotations

import json
import random
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import count
from typing import Any, NoReturn

import httpx

from data_processing.errors import ConfigError
from rlhf_core.rewards.compose import LONGEST_WAIT_S, Retries
from rlhf_core.rewards.errors import is_transient

_LARGEST_ANSWER_BYTES = 64 << 20
# What a service says of one request, or of the form of all of them: which it is shows in whether it ever answered another.
_OF_THE_REQUEST = (400, 413, 422)


class UnansweredError(Exception):
    """A request that no answer came to, or none that can be used; the text says why."""


class RefusedError(UnansweredError):
    """The service answers, and refuses this request."""


class _LaterError(Exception):
    """The next try may have an answer, `after_s` seconds from now where the service says when."""

    def __init__(self, why: str, after_s: float = 0.0) -> None:
        super().__init__(why)
        self.after_s = after_s


@dataclass(frozen=True, slots=True)
class Channel:
    """What all requests to `url` share: connections, `slots` for those in flight, each try within `timeout_s` seconds.

    `answered` is set once any request was; `key` is what no message may show.
    """

    client: httpx.Client
    url: str
    slots: threading.Semaphore
    timeout_s: float
    retries: Retries
    key: str | None = field(default=None, repr=False)
    answered: threading.Event = field(default_factory=threading.Event)


class Exchange:
    """Requests of one call over a channel, from any number of threads, all within `limit_s` seconds from now; `over` ends all waits."""

    def __init__(self, channel: Channel, limit_s: float | None) -> None:
        self._channel, self._url = channel, channel.url
        self._end = time.monotonic() + (threading.TIMEOUT_MAX / 2 if limit_s is None else limit_s)
        self.over = threading.Event()

    def post(self, body: Any) -> Any:
        """The JSON of the answer to `body`. Raises `UnansweredError` for none, `ConfigError` for what no try can mend."""
        content = json.dumps(body).encode()
        for tries in count(1):
            try:
                return self._once(content)
            except _LaterError as error:
                pause_s = self._pause_s(tries, error.after_s)
                if tries > self._channel.retries.count or time.monotonic() + pause_s > self._end or self.over.wait(pause_s):
                    raise UnansweredError(f"{self._url} failed {tries} times in a row, at last with: {error}") from error
        raise AssertionError("the loop has no other end")

    def _pause_s(self, tries: int, after_s: float) -> float:
        """Seconds to the next try; not all who wait come back at once."""
        return max(
            self._channel.retries.pause_s(tries) * random.uniform(0.5, 1.0),
            min(after_s, LONGEST_WAIT_S) * random.uniform(1.0, 1.1),
        )

    def _once(self, content: bytes) -> Any:
        """One try, as soon as fewer than the allowed number are in flight."""
        slots = self._channel.slots
        if not slots.acquire(timeout=max(self._end - time.monotonic(), 0.0)):
            raise UnansweredError(
                f"{self._url} was not asked: its turn did not come in time; raise in_flight or online.stall_after_s"
            )
        limit_s = max(min(self._channel.timeout_s, self._end - time.monotonic()), 0.001)
        try:
            found = json.loads(self._exchanged(content, limit_s))
        except httpx.HTTPError as error:
            self._raise(error, limit_s)
        except (ValueError, RecursionError) as error:
            raise UnansweredError(f"{self._url} answered with what is no JSON ({error})") from error
        finally:
            slots.release()
        self._channel.answered.set()
        return found

    def _exchanged(self, content: bytes, limit_s: float) -> bytes:
        """The body of the answer. The client's own time-out is for each piece: one that comes in drops would never end."""
        end = time.monotonic() + limit_s
        with self._channel.client.stream("POST", self._url, content=content, timeout=limit_s) as answer:
            found = bytearray()
            for piece in answer.iter_bytes():
                found += piece
                if time.monotonic() > end:
                    raise httpx.ReadTimeout("the answer was not complete")
                if len(found) > _LARGEST_ANSWER_BYTES:
                    raise UnansweredError(f"{self._url} answered with more than {_LARGEST_ANSWER_BYTES >> 20} MiB")
            if not answer.is_success:
                raise httpx.HTTPStatusError(self._first_line(found), request=answer.request, response=answer)
            return bytes(found)

    def _raise(self, error: httpx.HTTPError, limit_s: float) -> NoReturn:
        if not isinstance(error, httpx.HTTPStatusError):
            why = (
                f"no answer within {limit_s:g} s"
                if isinstance(error, httpx.TimeoutException)
                else f"{type(error).__name__}: {error}"
            )
            raise (_LaterError(why) if is_transient(error) else UnansweredError(f"{self._url}: {why}")) from error
        status = error.response.status_code
        why = f"HTTP status {status}: {error}"
        if is_transient(error):
            raise _LaterError(why, _retry_after_s(error.response.headers.get("Retry-After"))) from error
        if status in _OF_THE_REQUEST:
            raise RefusedError(f"{self._url} refuses what it is asked, {why}") from error
        if 300 <= status < 400:
            target = error.response.headers.get("Location", "another address")
            raise ConfigError(
                f"{self._url} redirects to {target} (HTTP status {status}), which is not followed: give that URL"
            ) from error
        raise ConfigError(f"{self._url} answers with {why}; correct the URL, or what key_from names") from error

    def _first_line(self, body: bytearray) -> str:
        lines = body[:4096].decode(errors="replace").strip().splitlines() or ["no text"]
        line = lines[0][:200]
        return line.replace(self._channel.key, "***") if self._channel.key else line


def _retry_after_s(value: str | None) -> float:
    """Seconds that a Retry-After header asks for, given as such or as a date; 0 without one that can be read."""
    try:
        if value is None:
            return 0.0
        return float(value) if value.strip().isdigit() else (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
    except (TypeError, ValueError):
        return 0.0
