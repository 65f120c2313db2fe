"""One run of the pipeline, from a checked request to a registered model: its folder, its clock, the walk over its nodes.

What runs in which order is in `flows.graph.nodes`; how a stage runs is in `tasks.runtime`; where people see it is a `Display`.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from flows.graph.build import build_graph, told_of_unused
from flows.graph.limits import Limits
from flows.graph.nodes import Node, longest_path_first
from flows.graph.plan import Plan, has_work
from flows.graph.selection import Selection
from flows.graph.walk import walk
from flows.running.cancelling import told_at_once
from flows.running.checks import check_before_start
from flows.running.cluster import gpus_for_a_run
from flows.running.dead_runs import look_after
from flows.running.display import Display
from flows.running.failures import explained
from flows.running.finish import finish
from flows.running.lengths import LengthCheck
from flows.running.links import link, mlflow_note
from flows.running.old_code import CODE_FACT
from flows.running.progress import LOG, ProgressLines
from flows.running.run_folder import NodeTimes, RunFolder
from flows.services.machine import available_memory_gib
from flows.services.ray_head import ray_for_run
from flows.services.told_later import UntoldEnd, tell_later
from flows.settings.config import PipelineConfig
from flows.settings.presets import preset_name
from rlhf_core.settings.models import BaseModelConfig
from rlhf_core.settings.training import TrainingConfig
from tasks.runtime.contract.config import ExecutorKind, RuntimeConfig
from tasks.runtime.contract.home import Home
from tasks.runtime.contract.request import StageOutcome, StageRequest
from tasks.runtime.contract.run_state import RunState
from tasks.runtime.execution.executor import Executor
from tasks.runtime.execution.start import Runtime, git_commit
from tasks.runtime.execution.subprocess_executor import SubprocessExecutor
from tasks.runtime.keys.closure import Code
from tasks.runtime.store.places import store_of
from tasks.runtime.tracking.tracker import STATE_TAG, Tracker

_COMMIT_DIGITS = 10
_LOOK_EVERY_S = 5.0  # for stages that have said nothing for a while
_PAGE_WAIT_S = 60.0  # for MLflow to have a page of the run; nothing else waits for it
_MEMORY_SHARE = 0.9  # of what is free when the run starts; the rest is left to others


async def run_pipeline(
    config: PipelineConfig, selection: Selection, plan: Plan, home: Home, display: Display, *, preset: str, code: Code
) -> dict[str, Any]:
    """Run `selection` with `code`, of which `plan` says what there is to do; raises the first failed stage's error, explained.

    `preset` is what the configuration was made from, for people.
    """
    began = time.time()
    check_before_start(config, plan, home)
    run = _Run(config, selection, plan, home, display=display, began=began, preset=preset, code=code)
    # A run without work is over in a moment, and does not wait for the tracker.
    idle = not has_work(plan)
    look_after(home, also_unsent=True)
    tracker = run.tracker(later=idle)
    state, message = RunState.cancelled, "cancelled"
    linked: asyncio.Task[None] | None = None
    try:
        await display.begin(run.folder.name, run.tags())
        linked = asyncio.create_task(run.link(tracker, wait_s=0.0 if idle else _PAGE_WAIT_S))
        outcomes = await told_at_once(run.stages(tracker), run.cancelling)
        await linked
        result = await finish(config, outcomes, home, run.folder, tracker, display=display)
        state, message = RunState.finished, ""
    except Exception as error:
        state, message = RunState.failed, str(error)
        raise
    finally:
        if linked:
            linked.cancel()
        run.close(state, message)
        tracker.tag({STATE_TAG: state.value})
        tracker.finish(state.in_mlflow)
    return result


class _Run:
    """One run: its folder, its clock, and the walk over its nodes."""

    def __init__(
        self,
        config: PipelineConfig,
        selection: Selection,
        plan: Plan,
        home: Home,
        *,
        display: Display,
        began: float,
        preset: str,
        code: Code,
    ) -> None:
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(began))
        self.folder = RunFolder(home, f"{config.run.name}-{stamp}-{display.run_id[:4]}")
        self._config = config
        self._selection = selection
        self._plan = plan
        self._home = home
        self._display = display
        self._began = began
        self._preset = preset_name(preset)
        self._code = code
        self._commit = git_commit()
        self._times: dict[str, NodeTimes] = {}
        self._at_work: dict[str, ProgressLines] = {}
        self._lengths = LengthCheck(plan, store_of(home))
        self.folder.write_config(config)
        self.folder.begin(flow_run=display.run_id, prefect_server=display.server, began=began, **{CODE_FACT: code.root.name})
        cached = sum(not planned.runs for planned in plan.values())
        LOG.info("run %s: %d stages, %d of them cached", self.folder.name, len(plan), cached)
        for line in told_of_unused(build_graph(config)):
            LOG.warning("warning: %s", line)

    def tags(self) -> list[str]:
        """What people look for runs by: its name, the preset, the model it starts from, the entries it trains, the code."""
        nodes = self._selection.graph.values()
        paths = [node.settings.path for node in nodes if isinstance(node.settings, BaseModelConfig)]
        trained = dict.fromkeys(node.entry or node.name for node in nodes if isinstance(node.settings, TrainingConfig))
        return [
            self._config.run.name,
            f"preset:{self._preset}",
            *(f"model:{Path(path).name}" for path in paths),
            *(f"trains:{entry}" for entry in trained),
            *([f"commit:{self._commit[:_COMMIT_DIGITS]}"] if self._commit else []),
        ]

    def tracker(self, later: bool) -> Tracker:
        """The tracker's view of this run; see `Tracker` for `later`."""
        params = {"seed": self._config.run.seed, "model": self._config.model.path}
        tags = {"alignflow.flow_run": self._display.run_id, "alignflow.folder": str(self.folder.path)}
        tags |= {"alignflow.preset": self._preset, "mlflow.note.content": mlflow_note(self._display, self.folder)}
        tags |= {"mlflow.source.git.commit": self._commit} if self._commit else {}
        experiment = self._config.run.experiment
        return Tracker(self._home, self.folder.name, params=params, tags=tags, experiment=experiment, later=later)

    async def link(self, tracker: Tracker, wait_s: float) -> None:
        """See `flows.running.links`; a page that a server does not take does not stop the run."""
        try:
            await link(self._display, tracker, self.folder, experiment=self._config.run.experiment, wait_s=wait_s)
        except Exception as error:
            LOG.warning("links of this run are not shown: %s", error)

    async def stages(self, tracker: Tracker) -> dict[str, StageOutcome]:
        """Bring every node to a result; raises the first error when all that does not depend on it is done."""
        needed = self._config.runtime.executor is ExecutorKind.ray and has_work(self._plan)
        with ray_for_run(self._home, needed) as wait_for_ray:
            address = wait_for_ray()
            runtime = Runtime(self._home, _executor(address, self._config.runtime), self._config.runtime, self._code)

            async def start(node: Node, inputs: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
                return await self._node(node, inputs, runtime, tracker)

            def say_wait(name: str, what: str) -> None:
                ProgressLines(name).waits(what)

            silence = asyncio.create_task(self._say_what_is_waited_for())
            try:
                done = await walk(self._selection.graph, start, self._order(), self._limits(address), say_wait)
            finally:
                silence.cancel()
        if done.errors:
            raise explained(done.errors, done.not_started, self.folder)
        return {name: StageOutcome.from_json(answer) for name, answer in done.results.items()}

    async def _say_what_is_waited_for(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            for lines in list(self._at_work.values()):
                lines.wait()

    def cancelling(self) -> None:
        """Say that the run is being cancelled: whoever is killed while stages stop was not killed out of the blue."""
        grace_s = self._config.runtime.stop_grace_s
        LOG.info("cancelling: what runs gets up to %g s (runtime.stop_grace_s) to save a checkpoint and stop", grace_s)
        self.folder.write_status(RunState.cancelling)

    def close(self, state: RunState, message: str) -> None:
        """Write down how the run ended and where the time went."""
        ended = time.time()
        if state is RunState.cancelled and self._display.server:
            # Prefect takes an interrupted run for a crashed one.
            end = UntoldEnd(flow_run=UUID(self._display.run_id), server=self._display.server, state=state, message=message)
            tell_later(self._home, end)
        self.folder.write_timings(self._began, ended, self._times)
        self.folder.write_status(state, message=message, ended=ended)

    async def _node(self, node: Node, inputs: Mapping[str, dict[str, Any]], runtime: Runtime, tracker: Tracker) -> dict[str, Any]:
        lines, began = ProgressLines(node.name), time.time()
        self._at_work[node.name] = lines
        request = StageRequest(
            stage=node.stage,
            node=node.name,
            config=node.settings,
            run=self.folder.name,
            inputs={name: StageOutcome.from_json(answer).ref for name, answer in inputs.items()},
            seed=node.seed,
            force=node.name in self._selection.forced,
        )
        try:
            await self._lengths.before(node)
            answer = await self._display.node(request, runtime, tracker, inputs, lines)
        except Exception as error:
            lines.failed(error)
            raise
        finally:
            del self._at_work[node.name]
        outcome, ended = StageOutcome.from_json(answer), time.time()
        self._times[node.name] = NodeTimes(began, ended, 0.0 if outcome.cached else outcome.seconds)
        lines.finished(outcome, ended - began)
        self._lengths.made(node.name, outcome.ref)
        return answer

    def _order(self) -> list[str]:
        seconds = {name: planned.estimate.seconds or 0.0 for name, planned in self._plan.items() if planned.runs}
        return longest_path_first(self._selection.graph, seconds)

    def _limits(self, ray_address: str | None) -> Limits:
        host = urlsplit(ray_address or "").hostname or "localhost"
        here = host == "localhost" or host.startswith("127.")
        memory_gib = _MEMORY_SHARE * available_memory_gib() if here else math.inf
        work = {name: planned for name, planned in self._plan.items() if planned.may_run}
        needs_gib = {name: planned.estimate.memory_gib for name, planned in work.items()}
        needs_gpus = {name: planned.resources.gpus for name, planned in work.items() if planned.resources.gpus}
        gpus = gpus_for_a_run(self._config.runtime, self._home) if needs_gpus else math.inf
        return Limits(self._config.runtime.max_parallel_stages, memory_gib, needs_gib, gpus, needs_gpus)


def _executor(ray_address: str | None, settings: RuntimeConfig) -> Executor:
    """Ray where a run has it; without work to do it has none, and what turns up all the same runs as a subprocess."""
    if ray_address is None:
        return SubprocessExecutor()
    from tasks.runtime.execution.ray_jobs import RayJobsExecutor

    return RayJobsExecutor(ray_address, settings)
