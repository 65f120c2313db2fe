"""Commands about what is there already: reports, cached artifacts, and why something was not cached."""

from __future__ import annotations

import time
import webbrowser
from typing import TYPE_CHECKING

from data_processing.errors import ConfigError
from data_processing.wording import artifact_name, path_of
from flows.commands.tables import console, print_verdict, table_with
from flows.running.dead_runs import look_after
from flows.running.run_folder import RunFolder, find_run
from tasks.runtime.contract.home import Home

if TYPE_CHECKING:
    from flows.commands.actions import Asked
    from tasks.runtime.store.artifacts import Store
    from tasks.runtime.store.manifest import Manifest


def show_report(run: str, open_: bool) -> None:
    """`alignflow report RUN`."""
    home = Home.open(to_read=True)
    look_after(home)
    folder = find_run(home, run)
    if not folder.report.is_file():
        _rebuild_report(home, folder)
    print_verdict(folder)
    if open_:
        webbrowser.open(folder.report.as_uri())


def show_why(run: str, stage: str) -> None:
    """`alignflow cache why RUN STAGE`."""
    from flows.commands.why import differences

    home = Home.open(to_read=True)
    for line in differences(home, find_run(home, run).name, stage):
        print(line)


def adopt_node(asked: Asked) -> None:
    """`alignflow adopt NODE`; the node is what `asked` runs until."""
    from flows.commands.actions import read_request
    from flows.graph.nodes import nodes_called
    from flows.graph.plan import make_plan
    from flows.running.code import live_code
    from tasks.runtime.store.adopt import adopt
    from tasks.runtime.store.artifacts import Store

    home = Home.open()
    request = read_request(asked, home)
    plan, store = make_plan(request.config, request.selection, home, live_code(request.config, home)), Store(home.store)
    for node in nodes_called(request.selection.graph, str(asked.until_stage)):
        planned = plan[node]
        if planned.hit:
            print(f"{node}: cached, {planned.reason}")
            continue
        inputs = {given: plan[made_by].hit for given, made_by in planned.node.inputs.items()}
        if missing := [planned.node.inputs[given] for given, hit in inputs.items() if hit is None]:
            raise ConfigError(
                f"adopt {node}: it is made from {', '.join(missing)}, and that has no result; adopt or run it first"
            )
        found = _latest_result(home, store, node, planned.key.stage.kind)
        adopt(store, planned.key, found, {given: hit for given, hit in inputs.items() if hit})
        print(f"{node}: taken over from {found.producer.run} as {artifact_name(node, planned.key.key)}")


def _latest_result(home: Home, store: Store, node: str, kind: str) -> Manifest:
    """What the newest run that had a result of this node made, if it is still there."""
    from flows.graph.history import History

    for _, record in History(home).of(node):
        if (record.ref is not None) and (found := store.lookup(kind, record.key)):
            return found
    raise ConfigError(f"adopt {node}: no earlier run has a result of it in {home.store}; run it")


def show_artifacts() -> None:
    """`alignflow cache ls`."""
    from tasks.runtime.store.artifacts import Store

    store = Store(Home.open(to_read=True).store)
    table = table_with("artifact", "kind", "MiB", "work s", "made by", "when", "key")
    for manifest in store.manifests():
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(manifest.finished_at))
        made_by = f"{manifest.producer.run}/{manifest.producer.node}"
        name, size = artifact_name(manifest.producer.node, manifest.key), manifest.size / 2**20
        table.add_row(name, manifest.kind, f"{size:.1f}", f"{manifest.seconds:.1f}", made_by, when, manifest.key[:12])
    console().print(table)


def _rebuild_report(home: Home, folder: RunFolder) -> None:
    from tasks.runtime.store.artifacts import Store
    from tasks.runtime.store.records import read_node

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
    folder.keep_results(path_of(record.ref.uri))
