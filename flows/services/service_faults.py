"""Parts of the Prefect server that fail again and again while it answers: its scheduler, for one, without which no schedule fires."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from flows.services.processes import STARTED

# How the server's own task queue tells of a service that ended in an exception.
_FAILED = re.compile(r"\| ERROR +\| docket\.\S+ - ↩ \[.*?\] (\w+)\(")
_RAISED = re.compile(r"^[A-Za-z_][\w.]*: .+")


def service_faults(log: Path, at_least: int) -> list[str]:
    """A line for each service of the server that failed `at_least` times since it was started, with what it raised last."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    started = max((i for i, line in enumerate(lines) if STARTED.match(line)), default=0)
    counts, reasons, failing = Counter[str](), dict[str, str](), ""
    for line in lines[started:]:
        if failed := _FAILED.search(line):
            failing = failed.group(1)
            counts[failing] += 1
        elif failing and _RAISED.match(line):
            reasons[failing], failing = line, ""
    return [
        f"its service {name} failed {count} times since the server started, at last with {reasons.get(name, 'no reason given')}"
        for name, count in counts.items()
        if count >= at_least
    ]
