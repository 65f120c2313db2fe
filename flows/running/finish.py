"""The end of a run: the verdict into the run's folder, the report to the tracker, the best model registered."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from flows.running.display import Display
from flows.running.progress import LOG
from flows.running.results import markdown, verdict_table
from flows.running.run_folder import RunFolder
from flows.settings.config import PipelineConfig
from tasks.runtime.contract.home import Home
from tasks.runtime.contract.request import StageOutcome
from tasks.runtime.store.places import store_of
from tasks.runtime.tracking.tracker import Tracker

_RUN_ID_WAIT_S = 20.0


async def finish(
    config: PipelineConfig,
    outcomes: Mapping[str, StageOutcome],
    home: Home,
    folder: RunFolder,
    tracker: Tracker,
    *,
    display: Display,
) -> dict[str, Any]:
    """Publish what the run found. Returns JSON: the run, its folder, report and challenger (None where there is none)."""
    result: dict[str, Any] = {"run": folder.name, "folder": str(folder.path), "report": None, "challenger": None}
    if "compare" not in outcomes:
        return result
    await asyncio.to_thread(folder.keep_results, outcomes["compare"].ref, store_of(home))
    verdict = folder.read_verdict()
    if folder.report.is_file():
        result["report"] = str(folder.report)
        tracker.log_file(folder.report)
    if verdict is None:
        return result
    text = markdown(verdict_table(verdict), folder.name, folder.report.as_uri(), tracker.page or tracker.server)
    await display.verdict(text, folder.name)
    result["challenger"] = verdict.get("challenger")
    if result["challenger"] and config.run.registered_model:
        result["registered"] = await asyncio.to_thread(_register, config, outcomes, verdict, home, tracker)
    return result


def _register(
    config: PipelineConfig, outcomes: Mapping[str, StageOutcome], verdict: Mapping[str, Any], home: Home, tracker: Tracker
) -> str:
    from tasks.register import register_model

    challenger = str(verdict["challenger"])
    if challenger in verdict.get("seeds", {}):
        challenger = str(verdict["seeds"][challenger]["stands_for"])
    converted = f"convert_{challenger}"
    node = converted if converted in outcomes else challenger
    metrics = verdict["models"][verdict["challenger"]].get(verdict["decoding"], {})
    registered = register_model(
        outcomes[node].ref,
        name=str(config.run.registered_model),
        home=home,
        source_run_id=tracker.run_id(node, wait_s=_RUN_ID_WAIT_S),
        lineage={name: f"{outcome.ref.kind}/{outcome.ref.key}" for name, outcome in outcomes.items()},
        metrics={metric: float(interval["mean"]) for metric, interval in metrics.items()},
    )
    LOG.info("registered %s as %s version %s, alias challenger", challenger, registered.name, registered.version)
    return f"{registered.name}/{registered.version}"
