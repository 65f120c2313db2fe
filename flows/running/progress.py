"""One line for everything a user wants to see of a stage: that it started, how far it is, how it ended.

Lines go to the logger `alignflow`: the command line prints it, and Prefect shows it with the flow run.
"""

from __future__ import annotations

import logging
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from tasks.runtime.contract.request import SilentObserver, StageOutcome

LOG = logging.getLogger("alignflow")
LOG.setLevel(logging.INFO)  # in a flow that a worker starts nobody else says so, and its page would show warnings only
_EVERY_S = 5.0
SILENT_S = 60.0


class ProgressLines(SilentObserver):
    """Tells the story of one node: progress at most every five seconds, and what is waited for where there is none for a minute."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._next = 0.0
        self._doing, self._since_s, self._silent_since_s = "", 0.0, 0.0
        self.begins("waiting for what it reads to be measured")

    def begins(self, doing: str) -> None:
        """The node is at this from now on."""
        self._doing = doing
        self._since_s = self._silent_since_s = time.monotonic()

    def wait(self) -> None:
        """Say what the node is at, and for how long, where nothing was said for a minute."""
        now = time.monotonic()
        if now - self._silent_since_s >= SILENT_S:
            self._silent_since_s = now
            LOG.info("%-22s still at this for %s: %s", self._node, timedelta(seconds=round(now - self._since_s)), self._doing)

    def on_attempt(self, attempt: int, folder: Path, attached: bool) -> None:
        """The stage has started, or was found running."""
        how = "attached to attempt" if attached else "started, attempt"
        LOG.info("%-22s %s %d", self._node, how, attempt)
        self.begins("starting; its process has said nothing yet")

    def on_event(self, event: dict[str, Any]) -> None:
        """Progress, now and then; warnings always."""
        if event["type"] == "warning":
            LOG.warning("%-22s %s", self._node, event["message"])
        elif event["type"] == "waiting":
            self.waits(str(event["message"]))
        elif event["type"] == "progress":
            line = f"{event['done']}/{event['total']} {event['message']}"
            self.begins(line)
            if time.monotonic() >= self._next:
                self._next = time.monotonic() + _EVERY_S
                LOG.info("%-22s %s", self._node, line)

    def waits(self, what: str) -> None:
        """The stage cannot go on yet, or cannot start."""
        if what != self._doing:
            LOG.info("%-22s %s", self._node, what)
            self.begins(what)

    def on_warning(self, message: str) -> None:
        """What the runtime has to say."""
        LOG.warning("%-22s %s", self._node, message)

    def finished(self, outcome: StageOutcome, wall_s: float) -> None:
        """The stage is done."""
        if outcome.cached:
            LOG.info("%-22s cached (%s)", self._node, outcome.origin)
        else:
            LOG.info("%-22s done in %.1f s (%.1f s with start and end)", self._node, outcome.seconds, wall_s)

    def failed(self, error: BaseException) -> None:
        """The stage will not finish."""
        LOG.error("%-22s failed: %s", self._node, (str(error).splitlines() or [type(error).__name__])[0])
