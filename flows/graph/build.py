"""The graph of a run: the nodes of its entries, an evaluation behind every model, and the comparison of all of them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Any

from data_processing.config import LOCAL, DataConfig, SourceKind, TableSource
from data_processing.errors import ConfigError
from data_processing.settings import Settings
from evaluation.config import PRIMARY_METRICS, CompareConfig, EvaluateConfig
from flows.graph.expand import POLICY, Expansion
from flows.graph.nodes import Graph, Node
from flows.graph.variants import Variant
from flows.settings.config import PipelineConfig
from flows.settings.entries import BASE, DATA
from rlhf_core.precision import Native, native_dtype
from rlhf_core.settings.rewards.vr_cli import BASELINE, GENERATOR
from rlhf_core.settings.training import EngineSettings, MethodConfig
from rlhf_core.settings.vr_cli import VrCliBaselineConfig
from tasks.runtime.contract.registry import load_stage

_SCORER, _SCORER_INPUT = "scorer", "reward_model"


def build_graph(config: PipelineConfig, native: Native = native_dtype) -> Graph:
    """The nodes of a run by name, each after the nodes it is made from. Raises what `Expansion` does.

    `native` says what the machines compute that stages run on; this one, where nothing is said.
    """
    entries = Expansion(config)
    nodes = dict(entries.nodes)
    if models := _models(entries):
        nodes |= {f"evaluate_{model.node}": _evaluation(entries, model) for model in models}
        nodes["compare"] = _comparison(entries, models)
    _check_generators(nodes)
    taken = {made_by for node in nodes.values() for made_by in node.inputs.values()}
    unused = {source for source in (BASE, DATA) if source not in config.pipeline and source not in taken}
    return {name: replace(node, settings=settled(node.settings, native)) for name, node in nodes.items() if name not in unused}


def _as_named(node: Node) -> str:
    """How people name what a node makes: a conversion by what it converts."""
    return node.inputs.get("checkpoint", node.name)


def _check_generators(nodes: Graph) -> None:
    """Raise `ConfigError` where plans would be judged by another model than the one that the baseline was computed with."""
    for node in nodes.values():
        if not {GENERATOR, BASELINE} <= {*node.inputs}:
            continue
        baseline = nodes[node.inputs[BASELINE]]
        asked, computed_with = (_as_named(nodes[name]) for name in (node.inputs[GENERATOR], baseline.inputs["model"]))
        if asked != computed_with:
            raise ConfigError(
                f"pipeline.{node.name}.{GENERATOR}: got '{asked}', and its baseline '{baseline.name}' is computed with '{computed_with}'; "
                f"use {GENERATOR}: {computed_with}, or give pipeline.{baseline.name} the model '{asked}'"
            )


def settled(settings: Settings, native: Native = native_dtype) -> Settings:
    """The same with `dtype: auto` replaced, at any depth, by what is computed in, and nulls by what the method takes for them.

    So it is planned with and part of the key.
    """
    if isinstance(settings, MethodConfig):
        settings = settings.settled()
    values = {name: getattr(settings, name) for name in type(settings).model_fields}
    changed: dict[str, Any] = {name: settled(value, native) for name, value in values.items() if isinstance(value, Settings)}
    if isinstance(settings, (EngineSettings, EvaluateConfig, VrCliBaselineConfig)):
        changed["dtype"] = settings.precision_by(native)
    return settings.model_copy(update={name: value for name, value in changed.items() if value != values[name]})


def pinned(graph: Graph) -> Graph:
    """The same with each Hugging Face dataset at the commit that it names now, so that new data is another key and old data the same.

    Generated data is at the version of the library that makes it. Raises what `commit_of` and `version_for` do.
    """
    return {name: replace(node, settings=_at_commits(node.settings)) for name, node in graph.items()}


def _at_commits(settings: Settings) -> Settings:
    if not isinstance(settings, DataConfig):
        return settings
    tables = [name for name, field in DataConfig.model_fields.items() if field.annotation == list[TableSource]]
    fixed = {table: [_at_commit(f"data.{table}[{i}]", s) for i, s in enumerate(getattr(settings, table))] for table in tables}
    return settings.model_copy(update=fixed)


def _at_commit(place: str, source: TableSource) -> TableSource:
    if source.kind in LOCAL:
        return source
    from data_processing.sources.from_verifiers import version_of_environment
    from data_processing.sources.generated import version_for
    from data_processing.sources.hub import commit_of

    found = {
        SourceKind.huggingface: commit_of,
        SourceKind.reasoning_gym: version_for,
        SourceKind.verifiers: version_of_environment,
    }
    return source.model_copy(update={"revision": found[source.kind](source, place)})


def deciding_metric(graph: Graph) -> str | None:
    """The metric that the comparison will decide by, as far as that can be told before anything is measured."""
    compare = graph["compare"].settings if "compare" in graph else None
    if not isinstance(compare, CompareConfig) or compare.primary_metric:
        return compare.primary_metric if isinstance(compare, CompareConfig) else None
    evaluation = graph[next(iter(graph["compare"].inputs.values()))]
    data = graph[evaluation.inputs["data"]].settings
    measured = {
        "procedures": isinstance(data, DataConfig) and data.asks_for_procedures,
        "reward": _SCORER_INPUT in evaluation.inputs,
        "improvement": True,
        "perplexity": True,
    }
    asked = evaluation.settings.metrics if isinstance(evaluation.settings, EvaluateConfig) else []
    return next((m for m in PRIMARY_METRICS if (family := m.partition(".")[0]) in asked and measured[family]), None)


def told_of_unused(graph: Graph) -> list[str]:
    """Of a whole pipeline, a line for each entry whose result nothing takes and nothing evaluates, though that is what it is for: models and data."""
    taken = {made_by for node in graph.values() for made_by in node.inputs.values()}
    idle = [node for node in graph.values() if node.name not in taken and load_stage(node.stage).kind in ("model", "data")]
    owners = {_as_named(node) for node in idle}
    entries = dict.fromkeys(node.entry for node in graph.values() if node.entry and node.name in owners)
    return [
        f"nothing uses entry '{entry}'; take it out (--set pipeline.{entry}=null), or name it as an input" for entry in entries
    ]


def _models(entries: Expansion) -> list[Variant]:
    """The models that are evaluated, in the order of the report: those of last rounds, and whatever the comparison names."""
    compare = entries.config.compare
    texts = [("compare.candidates", text) for text in compare.candidates or ()]
    texts += [("compare.baseline", compare.baseline)] if compare.baseline else []
    named = [variant for place, text in texts for variant in entries.chosen(place, text, POLICY)]
    if off := [variant for variant in named if not entries.entries[variant.entry].evaluate]:
        raise ConfigError(
            f"compare: names '{off[0].node}', and pipeline.{off[0].entry}.evaluate is false; set it to true, or take the name out"
        )
    return [
        variant
        for name in entries.makers(POLICY)
        for variant in entries.variants[name]
        if variant in named or (variant.is_last and entries.entries[name].evaluate)
    ]


def _evaluation(entries: Expansion, model: Variant) -> Node:
    settings, seed = entries.config.evaluate, entries.config.run.seed
    data, base = (entries.one(f"pipeline.{name}", name, role).result for name, role in ((DATA, "data"), (BASE, POLICY)))
    inputs = {"model": model.result, "data": data, "base": base}
    wanted = load_stage("evaluate").wants(settings)
    if _SCORER_INPUT in wanted and (scorer := _scorer(entries)):
        inputs[_SCORER_INPUT] = scorer.result
    if BASELINE in wanted:
        baseline = _baseline(entries).result
        inputs |= {GENERATOR: entries.nodes[baseline].inputs["model"], BASELINE: baseline}
    return Node(f"evaluate_{model.node}", "evaluate", settings, inputs, seed)


def _scorer(entries: Expansion) -> Variant | None:
    """The scorer of the metric 'reward': the one that is named, or the only one; None where there is none."""
    return _maker(entries, "reward_model", _SCORER, "scores answers for the metric 'reward'")


def _baseline(entries: Expansion) -> Variant:
    """What the metric 'improvement' compares with: the entry that is named, or the only one."""
    found = _maker(entries, BASELINE, BASELINE, "the metric 'improvement' compares with")
    if found is None:
        raise ConfigError(
            "evaluate.baseline: say which entry the metric 'improvement' compares with; allowed are none here; add an entry of stage "
            "vr_cli_baseline, or take the metric out"
        )
    return found


def _maker(entries: Expansion, setting: str, role: str, what: str) -> Variant | None:
    """The entry with this role that a setting of `evaluate` names, or the only one; None where there is none."""
    place, named, makers = f"evaluate.{setting}", getattr(entries.config.evaluate, setting), entries.makers(role)
    if named is None and len(makers) > 1:
        raise ConfigError(f"{place}: say which entry {what}; allowed are {', '.join(makers)}")
    return entries.one(place, named or makers[0], role) if named or makers else None


def _comparison(entries: Expansion, models: list[Variant]) -> Node:
    """All evaluations against each other; its settings get the full names of what was named or left open.

    Variants that differ in their seed only are one model to the comparison.
    """
    compare = entries.config.compare
    families: dict[str, list[str]] = defaultdict(list)
    for model in models:
        families[model.family].append(model.node)
    names = list(families)
    if compare.baseline is None:
        # The first model that is trained, where others come after it.
        baseline = names[1] if len(names) > 2 and len({v.family for v in entries.variants[models[1].entry]}) == 1 else names[0]
    else:
        baseline = _one_family(entries.chosen("compare.baseline", compare.baseline, POLICY), compare.baseline)
    if compare.candidates is None:
        candidates = [name for name in names if name not in (baseline, BASE)]
    else:
        found = [v.family for text in compare.candidates for v in entries.chosen("compare.candidates", text, POLICY)]
        candidates = list(dict.fromkeys(found))
    if baseline in candidates:
        raise ConfigError(f"compare.candidates contains the baseline '{baseline}'; a model cannot be its own challenger")
    nodes = [model.node for model in models]
    seeds = {name: members for name, members in families.items() if members != [name]}
    filled = {"baseline": baseline, "candidates": candidates, "models": nodes, "seeds": seeds}
    inputs = {name: f"evaluate_{name}" for name in nodes}
    return Node("compare", "compare", compare.model_copy(update=filled), inputs, entries.config.run.seed)


def _one_family(chosen: list[Variant], text: str) -> str:
    names = dict.fromkeys(variant.family for variant in chosen)
    if len(names) > 1:
        raise ConfigError(f"compare.baseline: '{text}' has several variants, and one is needed; name it: {', '.join(names)}")
    return next(iter(names))
