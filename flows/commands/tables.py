"""Tables on the terminal."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

from flows.running.results import verdict_table
from flows.running.run_folder import RunFolder


def print_verdict(folder: RunFolder) -> None:
    """Print the verdict of a run and where its report is, as far as it has them."""
    verdict = folder.read_verdict()
    if verdict is not None:
        found = verdict_table(verdict)
        table = table_with(*found.columns)
        for row in found.rows:
            table.add_row(*row)
        console().print(table)
        print(found.conclusion)
    if folder.report.is_file():
        print(f"report: {folder.report}")


def table_with(*columns: str) -> Table:
    """An empty table with these columns; long cells are folded, never cut."""
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def console() -> Console:
    """The terminal, or 200 columns where there is none."""
    # Without a terminal there is no width to fit: wide tables stay whole in logs and files.
    return Console(soft_wrap=False) if sys.stdout.isatty() else Console(width=200)
