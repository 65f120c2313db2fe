"""One queue for all who ask: what came in while the last call ran is scored together, so that forward passes fill."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")
_Part = tuple[Sequence[T], "Future[list[R]]"]


class ScoringQueue(Generic[T, R]):
    """Calls `score`, which gives one result an item in order, from one thread, with the items of everybody who waits."""

    def __init__(self, score: Callable[[Sequence[T]], Sequence[R]]) -> None:
        self._score = score
        self._parts: SimpleQueue[_Part[T, R] | None] = SimpleQueue()
        self._thread = Thread(target=self._work, name="scoring", daemon=True)
        self._thread.start()

    def submit(self, items: Sequence[T]) -> Future[list[R]]:
        """The results of `items`; the future has what `score` raised, as have those that were scored together with it."""
        future: Future[list[R]] = Future()
        self._parts.put((items, future))
        return future

    def close(self) -> None:
        """End the thread once everything that waits is scored."""
        self._parts.put(None)
        self._thread.join()

    def _work(self) -> None:
        is_open = True
        while is_open:
            parts, is_open = self._waiting()
            wanted = [(items, future) for items, future in parts if future.set_running_or_notify_cancel()]
            try:
                results = list(self._score([item for items, _ in wanted for item in items])) if wanted else []
            except Exception as error:
                for _, future in wanted:
                    future.set_exception(error)
                continue
            for items, future in wanted:
                future.set_result(results[: len(items)])
                del results[: len(items)]

    def _waiting(self) -> tuple[list[_Part[T, R]], bool]:
        """All parts that wait, at least one; and whether more may come."""
        parts: list[_Part[T, R]] = []
        part = self._parts.get()
        while part is not None:
            parts.append(part)
            try:
                part = self._parts.get_nowait()
            except Empty:
                return parts, True
        return parts, False
