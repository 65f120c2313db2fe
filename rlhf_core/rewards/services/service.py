"""A service that is asked over HTTP, several requests side by side. What they hold is the business of those who ask."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import httpx

from data_processing.errors import ConfigError
from rlhf_core.addresses import check_url, host_of, is_loopback
from rlhf_core.rewards.compose import Retries
from rlhf_core.rewards.services.exchange import Channel, Exchange, RefusedError, UnansweredError

if TYPE_CHECKING:
    from rlhf_core.rewards.build import Around
    from rlhf_core.settings.rewards.services import ServiceReward

Post = Callable[[Any], Any]
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Access:
    """How a service is reached: `in_flight` requests at a time, each try within `timeout_s` seconds, all of a call within `limit_s`.

    `key` is sent as bearer token and shown nowhere.
    """

    key: str | None = field(default=None, repr=False)
    in_flight: int = 8
    timeout_s: float = 60.0
    allowed_hosts: tuple[str, ...] = ()
    retries: Retries = field(default_factory=Retries)
    limit_s: float | None = None

    @classmethod
    def of(cls, source: ServiceReward, around: Around) -> Access:
        """From settings; raises `ConfigError` for a key that is not there."""
        key = None if source.key_from is None else read_key(source.key_from)
        return cls(key, source.in_flight, source.timeout_s, around.allowed_hosts, around.retries, around.limit_s)


def read_key(variable: str) -> str:
    """The key that an environment variable holds; raises `ConfigError`, without the key, where there is none that can be sent."""
    key = os.environ.get(variable, "").strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        state = "holds characters that no HTTP header may" if key else "is not set in this process"
        raise ConfigError(
            f"key_from='{variable}': that environment variable {state}; set it to the key, where the reward is computed"
        )
    return key


class Service:
    """One URL that JSON is posted to. Raises `ConfigError`, naming the setting `place`, for one that may not be asked."""

    def __init__(self, url: str, access: Access, place: str) -> None:
        self.url, self._access, self._place = url, access, place
        self._check()
        slots = threading.Semaphore(access.in_flight)
        self._channel = Channel(_client(url, access), url, slots, access.timeout_s, access.retries, access.key)

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines for people on what is risky about it."""
        is_open = self._access.key and self.url.lower().startswith("http:") and not is_loopback(host_of(self.url))
        return (f"{self._place}: the key is sent to {self.url} unencrypted; use https",) if is_open else ()

    def ask_all(self, work: Callable[[Post, T], R], items: Sequence[T]) -> list[R | UnansweredError]:
        """`work(post, item)` of each item, in order, several at a time in threads; `post(body)` returns the JSON of an answer.

        It may be called from several threads: no more than `in_flight` requests of all calls are on their way.

        `post` raises `UnansweredError`; an item whose work lets it through has the error as its result. Raises `ConfigError` where
        the service can never answer: a wrong address or key, a redirect, or nothing but refusals so far.
        """
        self._check()
        exchange = Exchange(self._channel, self._access.limit_s)
        with ThreadPoolExecutor(min(self._access.in_flight, len(items)) or 1) as pool:
            futures = [pool.submit(_kept, work, exchange.post, item) for item in items]
            try:
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
            except BaseException:
                exchange.over.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        found = [future.result() for future in futures]
        refused = next((result for result in found if isinstance(result, RefusedError)), None)
        if refused is not None and not self._channel.answered.is_set():
            raise ConfigError(f"{refused}; it has answered no other so far: correct the URL, or the form and what else is sent")
        return found

    def _check(self) -> None:
        check_url(self.url, self._access.allowed_hosts, self._place, resolve=True)
        try:
            httpx.URL(self.url)
        except httpx.InvalidURL as error:
            raise ConfigError(
                f"{self._place}: got {self.url!r}; it is no URL ({error}): give one that HTTP clients take"
            ) from error


def _client(url: str, access: Access) -> httpx.Client:
    """Proxies of the environment know nothing of this machine's own ports."""
    headers = {"Content-Type": "application/json"}
    if access.key is not None:
        headers["Authorization"] = f"Bearer {access.key}"
    limits = httpx.Limits(max_connections=access.in_flight)
    return httpx.Client(headers=headers, limits=limits, follow_redirects=False, trust_env=not is_loopback(host_of(url)))


def _kept(work: Callable[[Post, T], R], post: Post, item: T) -> R | UnansweredError:
    try:
        return work(post, item)
    except UnansweredError as error:
        return error
