"""What the runs before had of a node. Folders are looked at once, whatever the number of nodes that ask."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

from tasks.runtime.contract.home import Home
from tasks.runtime.contract.run_state import began_at
from tasks.runtime.store.records import NodeRecord, read_node


class History:
    """The runs of a home as they were when first asked for, newest first."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._nodes: dict[str, frozenset[str]] = {}

    def of(self, node: str) -> Iterator[tuple[str, NodeRecord]]:
        """Names of the runs that had a node of this name, newest first, with what it was."""
        for run in self._newest_first:
            if node in self._nodes_of(run) and (record := read_node(self._home, run, node)):
                yield run, record

    @cached_property
    def _newest_first(self) -> list[str]:
        began = {folder.name: began_at(folder) for folder in self._home.runs.glob("*") if folder.is_dir()}
        return sorted(began, key=lambda run: began[run], reverse=True)

    def _nodes_of(self, run: str) -> frozenset[str]:
        if run not in self._nodes:
            folder = self._home.runs / run / "nodes"
            self._nodes[run] = frozenset(path.stem for path in folder.iterdir()) if folder.is_dir() else frozenset()
        return self._nodes[run]
