"""The end of a run: the verdict into the run's folder, the report to the tracker, the best model registered."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from data_processing.errors import AlignflowError, ConfigError
from data_processing.wording import path_of
from flows.running.display import Display
from flows.running.progress import LOG
from flows.running.results import markdown, verdict_table
from flows.running.run_folder import RunFolder
from flows.settings.config import PipelineConfig
from tasks.runtime.contract.home import Home
from tasks.runtime.contract.request import StageOutcome
from tasks.runtime.tracking.orders import Order, keep_order
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
    folder.keep_results(path_of(outcomes["compare"].ref.uri))
    verdict = folder.read_verdict()
    if folder.report.is_file():
        result["report"] = str(folder.report)
        tracker.log_file(folder.report)
    if verdict is None:
        return result
    text = markdown(verdict_table(verdict), folder.name, folder.report.as_uri(), tracker.page or tracker.server)
    await display.verdict(text, folder.name)
    result["challenger"] = verdict.get("challenger")
    tracker.metrics(comparable(verdict))
    if result["challenger"] and config.run.registered_model:
        order = await asyncio.to_thread(_order, config, outcomes, verdict, folder.name, tracker)
        result["registered"] = await asyncio.to_thread(_register, home, order)
    return result


def comparable(verdict: Mapping[str, Any]) -> dict[str, float]:
    """What a tracker shows of a run in one line, `model/metric`: means of the deciding decoding, and gains over the baseline."""
    decoding, metric = verdict["decoding"], verdict["primary_metric"]
    means = {
        f"{model}/{name}": float(interval["mean"])
        for model, table in verdict["models"].items()
        for name, interval in table.get(decoding, {}).items()
    }
    gains = {
        f"{model}/{metric} vs {verdict['baseline']}": float(table[decoding][metric]["mean"])
        for model, table in verdict["paired"].items()
        if metric in table.get(decoding, {})
    }
    return means | gains


def _order(
    config: PipelineConfig, outcomes: Mapping[str, StageOutcome], verdict: Mapping[str, Any], run: str, tracker: Tracker
) -> Order:
    challenger = str(verdict["challenger"])
    if challenger in verdict.get("seeds", {}):
        challenger = str(verdict["seeds"][challenger]["stands_for"])
    converted = f"convert_{challenger}"
    node = converted if converted in outcomes else challenger
    metrics = verdict["models"][verdict["challenger"]].get(verdict["decoding"], {})
    return Order(
        run=run,
        node=node,
        name=str(config.run.registered_model),
        uri=tracker.uri,
        source_run_id=tracker.run_id(node, wait_s=_RUN_ID_WAIT_S),
        ref=outcomes[node].ref,
        lineage={name: f"{outcome.ref.kind}/{outcome.ref.key}" for name, outcome in outcomes.items()},
        metrics={metric: float(interval["mean"]) for metric, interval in metrics.items()},
        decided=not outcomes["compare"].cached,
    )


def _register(home: Home, order: Order) -> str | None:
    """Name and version, or None where MLflow is away: the run has finished all the same, and a later command registers it."""
    from tasks.register import CHALLENGER, carry_out_orders

    keep_order(home, order)
    done = carry_out_orders(home).get(order.run)
    if done is None:  # another command was faster
        return order.name
    if isinstance(done, ConfigError):
        raise done
    if isinstance(done, AlignflowError):
        LOG.warning("%s is not registered yet; the next command tries again: %s", order.name, str(done).splitlines()[0])
        return None
    alias = f"alias {CHALLENGER}" if done.is_challenger else f"{CHALLENGER} stays with a newer version"
    LOG.info("registered %s as %s version %s, %s", order.node, done.name, done.version, alias)
    return f"{done.name}/{done.version}"
