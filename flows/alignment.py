"""The flow `align`: base model and data to an aligned, evaluated, registered model.

The story of one run. What runs in which order is in `flows.graph`; how a stage runs is in `tasks.runtime`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from prefect import flow
from prefect.runtime import flow_run
from pydantic import JsonValue

from data_processing.config import DataConfig
from evaluation.config import CompareConfig, EvaluateConfig
from flows.config import PipelineConfig, RunConfig
from flows.failures import explained
from flows.finish import finish
from flows.graph import Node, build_graph, longest_path_first
from flows.machine import available_memory_gib
from flows.plan import Plan, make_plan
from flows.preflight import check_before_start
from flows.presets import Preset, resolve
from flows.progress import LOG, ProgressLines
from flows.ray_head import ray_for_run
from flows.run_folder import NodeTimes, RunFolder
from flows.scheduler import Limits, walk
from flows.selection import Selection, select
from rlhf_core.config import BaseModelConfig, ConvertConfig, OnlineConfig, PreferenceConfig, RewardModelConfig, SftConfig
from tasks.runtime.config import ExecutorKind, RuntimeConfig
from tasks.runtime.executor import Executor
from tasks.runtime.home import Home
from tasks.runtime.prefect_task import ref_of, run_node
from tasks.runtime.request import StageOutcome, StageRequest
from tasks.runtime.start import Runtime
from tasks.runtime.subprocess_executor import SubprocessExecutor
from tasks.runtime.tracking import RunStatus, Tracker, recover

_MEMORY_SHARE = 0.9  # of what is free when the run starts; the rest is left to others


@flow(name="align", persist_result=False, retries=0)
async def align(
    *,
    preset: Preset = Preset.quickstart,
    run: RunConfig = RunConfig(),  # noqa: B008  # frozen, and Prefect draws the form from it
    model: BaseModelConfig = BaseModelConfig(),  # noqa: B008
    data: DataConfig = DataConfig(),  # noqa: B008
    sft: SftConfig = SftConfig(),  # noqa: B008
    reward_model: RewardModelConfig = RewardModelConfig(),  # noqa: B008
    preference: PreferenceConfig = PreferenceConfig(),  # noqa: B008
    online: OnlineConfig = OnlineConfig(),  # noqa: B008
    convert: ConvertConfig = ConvertConfig(),  # noqa: B008
    evaluate: EvaluateConfig = EvaluateConfig(),  # noqa: B008
    compare: CompareConfig = CompareConfig(),  # noqa: B008
    runtime: RuntimeConfig = RuntimeConfig(),  # noqa: B008
    overrides: dict[str, JsonValue] = {},  # noqa: B006
    from_stage: str | None = None,
    until_stage: str | None = None,
    force: list[str] = [],  # noqa: B006
) -> dict[str, Any]:
    """Align a model; returns the run's name, its folder, the report and the challenger.

    Args:
        preset: Where settings start from.
        run: The run as a whole. Here and in every section, fields that differ from their default go over the preset.
        model: The model to start from.
        data: What is learned from.
        sft: Supervised fine-tuning.
        reward_model: The scorer.
        preference: Direct preference optimisation.
        online: Online training.
        convert: Checkpoints to Hugging Face folders.
        evaluate: Measuring each model.
        compare: Setting the models against each other.
        runtime: How stages are executed; changes no result.
        overrides: Single values by dotted name, over everything else, for example {"online.kl_coef": 0.02}.
        from_stage: Take everything before this stage or node from the cache.
        until_stage: Stop after this stage or node.
        force: Stages or nodes to run although their result is cached.
    """
    sections = {
        **{"run": run, "model": model, "data": data, "sft": sft, "reward_model": reward_model, "preference": preference},
        **{"online": online, "convert": convert, "evaluate": evaluate, "compare": compare, "runtime": runtime},
    }
    config = resolve(preset, sections, overrides)
    selection = select(build_graph(config), from_stage, until_stage, force)
    return await run_pipeline(config, selection, Home.open())


async def run_pipeline(config: PipelineConfig, selection: Selection, home: Home) -> dict[str, Any]:
    """Run `selection` inside the current Prefect flow run; raises the first failed stage's error, explained."""
    began = time.time()
    plan = make_plan(config, selection, home)
    check_before_start(config, plan, home)
    run = _AlignmentRun(config, selection, plan, home, began)
    recover(home)
    tracker = run.tracker()
    status: RunStatus = "KILLED"
    message = "cancelled"
    try:
        outcomes = await run.stages(tracker)
        result = await finish(config, outcomes, home, run.folder, tracker)
        status, message = "FINISHED", ""
    except Exception as error:
        status, message = "FAILED", str(error)
        raise
    finally:
        tracker.finish(status)
        run.close(status, message)
    return result


class _AlignmentRun:
    """One run: its folder, its clock, and the walk over its nodes."""

    def __init__(self, config: PipelineConfig, selection: Selection, plan: Plan, home: Home, began: float) -> None:
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(began))
        self.folder = RunFolder(home, f"{config.run.name}-{stamp}-{str(flow_run.id)[:4]}")
        self._config = config
        self._selection = selection
        self._plan = plan
        self._home = home
        self._began = began
        self._times: dict[str, NodeTimes] = {}
        self.folder.write_config(config)
        self.folder.write_status("running", flow_run=str(flow_run.id), began=began)
        cached = sum(not planned.runs for planned in plan.values())
        LOG.info("run %s: %d stages, %d of them cached", self.folder.name, len(plan), cached)

    def tracker(self) -> Tracker:
        """The tracker's view of this run."""
        params = {"seed": self._config.run.seed, "model": self._config.model.path}
        tags = {"alignflow.flow_run": str(flow_run.id), "alignflow.folder": str(self.folder.path)}
        return Tracker(self._home, self.folder.name, params=params, tags=tags, experiment=self._config.run.experiment)

    async def stages(self, tracker: Tracker) -> dict[str, StageOutcome]:
        """Bring every node to a result; raises the first error when all that does not depend on it is done."""
        needed = self._config.runtime.executor is ExecutorKind.ray and any(p.runs for p in self._plan.values())
        with ray_for_run(self._home, needed) as address:
            runtime = Runtime(self._home, _executor(address), self._config.runtime)

            async def start(node: Node, inputs: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
                return await self._node(node, inputs, runtime, tracker)

            done = await walk(self._selection.graph, start, self._order(), self._limits(address))
        if done.errors:
            raise explained(done.errors, done.not_started, self.folder)
        return {name: StageOutcome.from_json(answer) for name, answer in done.results.items()}

    def close(self, status: RunStatus, message: str) -> None:
        """Write down how the run ended and where the time went."""
        ended = time.time()
        self.folder.write_timings(self._began, ended, self._times)
        self.folder.write_status(status.lower(), message=message, ended=ended)

    async def _node(self, node: Node, inputs: Mapping[str, dict[str, Any]], runtime: Runtime, tracker: Tracker) -> dict[str, Any]:
        lines, began = ProgressLines(node.name), time.time()
        request = StageRequest(
            stage=node.stage,
            node=node.name,
            config=node.config(self._config),
            run=self.folder.name,
            inputs={name: ref_of(answer) for name, answer in inputs.items()},
            seed=self._config.run.seed,
            force=node.name in self._selection.forced,
        )
        try:
            answer = await run_node(request, runtime, tracker, dict(inputs), lines)
        except Exception as error:
            lines.failed(error)
            raise
        outcome, ended = StageOutcome.from_json(answer), time.time()
        self._times[node.name] = NodeTimes(began, ended, 0.0 if outcome.cached else outcome.seconds)
        lines.finished(outcome, ended - began)
        return answer

    def _order(self) -> list[str]:
        seconds = {name: planned.estimate.seconds or 0.0 for name, planned in self._plan.items() if planned.runs}
        return longest_path_first(self._selection.graph, seconds)

    def _limits(self, ray_address: str | None) -> Limits:
        host = urlsplit(ray_address or "").hostname or "localhost"
        here = host == "localhost" or host.startswith("127.")
        memory_gib = _MEMORY_SHARE * available_memory_gib() if here else math.inf
        needs = {name: planned.estimate.memory_gib for name, planned in self._plan.items() if planned.runs}
        return Limits(self._config.runtime.max_parallel_stages, memory_gib, needs)


def _executor(ray_address: str | None) -> Executor:
    """Ray where a run has it; without work to do it has none, and what turns up all the same runs as a subprocess."""
    if ray_address is None:
        return SubprocessExecutor()
    from tasks.runtime.ray_jobs import RayJobsExecutor

    return RayJobsExecutor(ray_address)
