"""One line for everything a user wants to see of a stage: that it started, how far it is, how it ended.

Lines go to the logger `alignflow`: the command line prints it, and Prefect shows it with the flow run.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from tasks.runtime.contract.request import SilentObserver, StageOutcome

LOG = logging.getLogger("alignflow")
_EVERY_S = 5.0
_WAIT_EVERY_S = 60.0


class ProgressLines(SilentObserver):
    """Tells the story of one node; progress at most every five seconds, what it waits for when that changes and once a minute."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._next = 0.0
        self._wait, self._next_wait = "", 0.0

    def on_attempt(self, attempt: int, folder: Path, attached: bool) -> None:
        """The stage has started, or was found running."""
        how = "attached to attempt" if attached else "started, attempt"
        LOG.info("%-22s %s %d", self._node, how, attempt)

    def on_event(self, event: dict[str, Any]) -> None:
        """Progress, now and then; warnings always."""
        if event["type"] == "warning":
            LOG.warning("%-22s %s", self._node, event["message"])
        elif event["type"] == "waiting":
            self.waits(str(event["message"]))
        elif event["type"] == "progress" and time.monotonic() >= self._next:
            self._next = time.monotonic() + _EVERY_S
            LOG.info("%-22s %d/%d %s", self._node, event["done"], event["total"], event["message"])

    def waits(self, what: str) -> None:
        """The stage cannot go on yet, or cannot start."""
        if what != self._wait or time.monotonic() >= self._next_wait:
            self._wait, self._next_wait = what, time.monotonic() + _WAIT_EVERY_S
            LOG.info("%-22s %s", self._node, what)

    def on_warning(self, message: str) -> None:
        """What the runtime has to say."""
        LOG.warning("%-22s %s", self._node, message)

    def finished(self, outcome: StageOutcome, wall_s: float) -> None:
        """The stage is done."""
        if outcome.cached:
            LOG.info("%-22s cached (%.1f s of work by %s)", self._node, outcome.seconds, outcome.producer)
        else:
            LOG.info("%-22s done in %.1f s (%.1f s with start and end)", self._node, outcome.seconds, wall_s)

    def failed(self, error: BaseException) -> None:
        """The stage will not finish."""
        LOG.error("%-22s failed: %s", self._node, (str(error).splitlines() or [type(error).__name__])[0])
