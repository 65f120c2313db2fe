"""A run as it is worked out before anything starts, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from flows.graph.plan import Plan, make_plan
from flows.graph.selection import Selection
from flows.running.code import frozen_code
from flows.running.display import Display
from flows.running.pipeline import run_pipeline
from flows.settings.config import PipelineConfig
from tasks.runtime.contract.home import Home
from tasks.runtime.keys.closure import Code


@dataclass
class Prepared:
    """What runs, with its plan and its code. Once it has run: who has seen it, and its `result`, or the `error` that ended it.

    `missed` says that the Prefect server was away in between.
    """

    config: PipelineConfig
    selection: Selection
    home: Home
    plan: Plan
    code: Code
    flow_run: str = ""
    server: str | None = None
    result: dict[str, Any] | None = None
    error: BaseException | None = None
    missed: bool = False

    def was_missed(self) -> None:
        """Note that Prefect was away."""
        self.missed = True

    async def run(self, display: Display, preset: str) -> dict[str, Any]:
        """Run it; returns and raises what `run_pipeline` does."""
        self.flow_run, self.server = display.run_id, display.server
        try:
            self.result = await run_pipeline(
                self.config, self.selection, self.plan, self.home, display, preset=preset, code=self.code
            )
        except BaseException as error:
            self.error = error
            raise
        return self.result


def prepare(config: PipelineConfig, selection: Selection, home: Home) -> Prepared:
    """Work out what `selection` does. Raises what `frozen_code` and `make_plan` do."""
    code = frozen_code(config, selection.graph, home)
    return Prepared(config, selection, home, make_plan(config, selection, home, code), code)


_HANDED_OVER: ContextVar[Prepared | None] = ContextVar("handed_over", default=None)


@contextmanager
def handing_over(prepared: Prepared) -> Iterator[None]:
    """A flow that is called in the block takes `prepared`, and does not work out again what its parameters say."""
    token = _HANDED_OVER.set(prepared)
    try:
        yield
    finally:
        _HANDED_OVER.reset(token)


def handed_over() -> Prepared | None:
    """What this flow was handed; None for one that another process has called."""
    return _HANDED_OVER.get()
