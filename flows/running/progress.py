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
LOG.setLevel(logging.INFO)  # in a flow that a worker starts nobody else says so, and its page would show warnings only
_EVERY_S = 5.0


class ProgressLines(SilentObserver):
    """Tells the story of one node; progress at most every five seconds."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._next = 0.0

    def on_attempt(self, attempt: int, folder: Path, attached: bool) -> None:
        """The stage has started, or was found running."""
        how = "attached to attempt" if attached else "started, attempt"
        LOG.info("%-22s %s %d", self._node, how, attempt)

    def on_event(self, event: dict[str, Any]) -> None:
        """Progress, now and then; warnings always."""
        if event["type"] == "warning":
            LOG.warning("%-22s %s", self._node, event["message"])
        elif event["type"] == "progress" and time.monotonic() >= self._next:
            self._next = time.monotonic() + _EVERY_S
            LOG.info("%-22s %d/%d %s", self._node, event["done"], event["total"], event["message"])

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
