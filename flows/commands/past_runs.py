"""Commands about what is there already: reports, cached artifacts, and why something was not cached."""

from __future__ import annotations

import time
import webbrowser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from data_processing.errors import ConfigError
from flows.commands.tables import console, print_verdict, table_with
from flows.running.run_folder import RunFolder, find_run
from tasks.runtime.home import Home


def show_report(run: str, open_: bool) -> None:
    """`alignflow report RUN`."""
    home = Home.open()
    folder = find_run(home, run)
    if not folder.report.is_file():
        _rebuild_report(home, folder)
    print_verdict(folder)
    if open_:
        webbrowser.open(folder.report.as_uri())


def show_why(run: str, stage: str) -> None:
    """`alignflow cache why RUN STAGE`."""
    from flows.commands.why import differences

    folder = find_run(Home.open(), run)
    for line in differences(Home.open(), folder.name, stage):
        print(line)


def show_artifacts() -> None:
    """`alignflow cache ls`."""
    from tasks.runtime.store import Store

    home = Home.open()
    store = Store(home.store)
    table = table_with("kind", "key", "MiB", "work s", "made by", "when")
    for folder in sorted(home.store.glob("[!.]*/*")):
        if manifest := store.manifest(folder.parent.name, folder.name):
            size = sum(file.size for file in manifest.files) / 2**20
            when = time.strftime("%Y-%m-%d %H:%M", time.localtime(manifest.finished_at))
            made_by = f"{manifest.producer.run}/{manifest.producer.node}"
            table.add_row(manifest.kind, manifest.key[:12], f"{size:.1f}", f"{manifest.seconds:.1f}", made_by, when)
    console().print(table)


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
    folder.keep_results(Path(unquote(urlsplit(record.ref.uri).path)))
