"""Where people see a run while it goes on, beside the terminal: what the pipeline asks of Prefect, and nothing more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from tasks.runtime.contract.request import StageObserver, StageRequest
from tasks.runtime.execution.start import Runtime
from tasks.runtime.tracking.tracker import Tracker


class Display(Protocol):
    """Runs the nodes of one run so that they can be seen."""

    @property
    def run_id(self) -> str:
        """What tells this run from all others."""
        ...

    @property
    def page(self) -> str | None:
        """The address of this run's page for a browser; None where there is none, or none that outlives the run."""
        ...

    @property
    def server(self) -> str | None:
        """The Prefect server that knows this run, as `flows.services.told_later` names it; None where none does."""
        ...

    async def begin(self, run: str, tags: Sequence[str]) -> None:
        """The run is called `run`; `tags` are what people look for runs by."""
        ...

    async def node(
        self,
        request: StageRequest,
        runtime: Runtime,
        tracker: Tracker,
        upstream: Mapping[str, dict[str, Any]],
        observer: StageObserver,
    ) -> dict[str, Any]:
        """Run a node; returns `StageOutcome.to_json()`. `upstream` is what its inputs returned, by input name."""
        ...

    async def links(self, text: str, run: str) -> None:
        """Show where else `run` can be seen, as Markdown."""
        ...

    async def verdict(self, text: str, run: str) -> None:
        """Show the verdict of `run`, as Markdown."""
        ...
