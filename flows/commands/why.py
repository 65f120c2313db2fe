"""Why a stage of a run was not cached: its key against the one it had in the run before."""

from __future__ import annotations

from data_processing.errors import ConfigError
from data_processing.wording import did_you_mean
from flows.graph.history import History
from tasks.runtime.contract.home import Home
from tasks.runtime.contract.run_state import began_at
from tasks.runtime.keys.stage_key import explain_difference
from tasks.runtime.store.records import NodeRecord, read_node


def differences(home: Home, run: str, stage: str) -> list[str]:
    """Lines for people, a node each: the run it is compared with, and every field of the key that differs.

    Raises `ConfigError` where the run has no such stage or node.
    """
    history = History(home)
    return [line for record in _records(home, run, stage) for line in _explain(home, history, run, record)]


def _explain(home: Home, history: History, run: str, record: NodeRecord) -> list[str]:
    if record.cached:
        producer = record.ref.producer if record.ref else "an earlier run"
        return [f"{record.node}: cached, made by {producer}"]
    began = began_at(home.runs / run)
    earlier = [found for found in history.of(record.node) if found[0] != run and began_at(home.runs / found[0]) <= began]
    if not earlier:
        return [f"{record.node}: no earlier run had this node"]
    other, before = earlier[0]
    changed = explain_difference(before.description, record.description)
    if not changed:
        return [f"{record.node}: the same key as in {other}; it was forced, or its result was not kept"]
    return [f"{record.node}: compared with {other}", *(f"  {line}" for line in changed)]


def _records(home: Home, run: str, stage: str) -> list[NodeRecord]:
    nodes = sorted(path.stem for path in (home.runs / run / "nodes").glob("*.json"))
    records = [record for node in nodes if (record := read_node(home, run, node))]
    # A node is called as its entry is, with what it varies in after it.
    found = [record for record in records if stage in (record.node, record.node.partition("@")[0], record.stage)]
    if not found:
        raise ConfigError(f"run '{run}' has no entry or stage '{stage}'; {did_you_mean(stage, nodes)}it has {', '.join(nodes)}")
    return found
