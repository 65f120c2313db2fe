"""A limit on how long a call in the main thread may take.

The call stays in the main thread, as reward functions may set alarms of their own, which work nowhere else. A second thread
wakes it by a signal, which also ends a sleep or a wait for an answer.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNAL = signal.SIGUSR2


class TimeLimitError(BaseException):
    """The time is over. No `Exception`, so that a function that goes on after any of those ends too."""


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raise `TimeLimitError` in the block once `seconds` are over; None, or a thread other than the main one: no limit."""
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    done = threading.Event()
    main = threading.get_ident()

    def watch() -> None:
        if not done.wait(seconds):
            signal.pthread_kill(main, _SIGNAL)

    before = signal.signal(_SIGNAL, _raise)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
        signal.signal(_SIGNAL, before)


def _raise(number: int, frame: FrameType | None) -> Any:
    raise TimeLimitError
