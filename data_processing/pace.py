"""How long work still takes, by the pace so far; for the lines that people wait in front of."""

from __future__ import annotations

import time
from datetime import timedelta

_EVERY_S = 1.0


class Pace:
    """The pace of work in equal parts, of which `done` were there when it began."""

    def __init__(self, done: float = 0.0) -> None:
        self._began_s, self._first = time.monotonic(), done
        self._next_s = self._began_s + _EVERY_S

    def left(self, done: float, total: float) -> str:
        """ ", 0:01:20 left" once `done` of `total` parts are done; nothing before the first of them, and after the last."""
        if not self._first < done < total:
            return ""
        seconds = (time.monotonic() - self._began_s) / (done - self._first) * (total - done)
        return f", {timedelta(seconds=round(seconds))} left"

    def is_due(self) -> bool:
        """Whether a second has passed since it was last so: there is no need to say more often how far work is."""
        if (now := time.monotonic()) < self._next_s:
            return False
        self._next_s = now + _EVERY_S
        return True
