"""Which nodes a run has, what each is made from, and in which order they can run. Declarations; nothing is started here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from data_processing.settings import Settings
from flows.config import OptionalStage, PipelineConfig


@dataclass(frozen=True)
class Node:
    """One stage in its place: `inputs` maps the stage's input names to the nodes that make them; `section` configures it."""

    name: str
    stage: str
    section: str
    inputs: Mapping[str, str]

    def config(self, pipeline: PipelineConfig) -> Settings:
        """The settings of this node's stage."""
        settings: Settings = getattr(pipeline, self.section)
        return settings


Graph = Mapping[str, Node]


def build_graph(config: PipelineConfig) -> Graph:
    """The nodes of a run by name, each after the nodes it is made from."""
    nodes = [_node("base_model", "model"), _node("prepare_data", "data")]
    start = "base_model"
    if config.has(OptionalStage.sft):
        nodes += _trained("sft", start)
        start = "convert_sft"
    if config.has(OptionalStage.reward_model):
        nodes += _trained("reward_model", start)
    if config.has(OptionalStage.preference):
        nodes += _trained("preference", start)
    if config.has(OptionalStage.online):
        nodes += _trained("online", start, _scorer(config.scores_online))
    nodes += [_evaluation(model, config) for model in config.models]
    nodes.append(_node("compare", "compare", **{model: f"evaluate_{model}" for model in config.models}))
    return {node.name: node for node in nodes}


def ancestors(graph: Graph, names: Iterable[str]) -> set[str]:
    """All nodes that `names` are made from, directly or not; without `names` themselves unless one leads to another."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        for parent in graph[waiting.pop()].inputs.values():
            if parent not in found:
                found.add(parent)
                waiting.append(parent)
    return found


def descendants(graph: Graph, names: Iterable[str]) -> set[str]:
    """All nodes that are made from `names`, directly or not."""
    sources = set(names)
    return {name for name in graph if ancestors(graph, [name]) & sources}


def longest_path_first(graph: Graph, seconds: Mapping[str, float]) -> list[str]:
    """Node names, those with the most work behind them first: when there is a choice, this is the order to start in."""
    left: dict[str, float] = {}
    for name in reversed(list(graph)):
        behind = [left[n.name] for n in graph.values() if name in n.inputs.values()]
        left[name] = seconds.get(name, 0.0) + max(behind, default=0.0)
    return sorted(graph, key=lambda name: -left[name])


def _node(name: str, section: str, stage: str | None = None, **inputs: str) -> Node:
    return Node(name=name, stage=stage or name, section=section, inputs=inputs)


def _trained(name: str, start: str, extra: Mapping[str, str] | None = None) -> list[Node]:
    """A training stage that starts from node `start`, and the conversion of its checkpoint."""
    return [
        _node(name, name, model=start, data="prepare_data", **(extra or {})),
        _node(f"convert_{name}", "convert", "convert", checkpoint=name, base=start),
    ]


def _evaluation(model: str, config: PipelineConfig) -> Node:
    made_by = "base_model" if model == "base" else f"convert_{model}"
    scorer = _scorer(config.measures_reward)
    return _node(f"evaluate_{model}", "evaluate", "evaluate", model=made_by, data="prepare_data", base="base_model", **scorer)


def _scorer(wanted: bool) -> dict[str, str]:
    return {"reward_model": "convert_reward_model"} if wanted else {}
