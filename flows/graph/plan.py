"""What a run would do: for each node its key, whether it is cached, and if not, why. Runs nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from data_processing.errors import ConfigError
from flows.graph.estimates import Estimate, estimate, parameters_of
from flows.graph.history import History
from flows.graph.nodes import Graph, Node
from flows.graph.selection import Selection
from flows.settings.config import PipelineConfig
from rlhf_core.cluster.resources import Resources
from rlhf_core.settings.models import BaseModelConfig
from tasks.runtime.contract.home import Home
from tasks.runtime.keys.closure import Code
from tasks.runtime.keys.stage_key import StageKey, explain_difference, stage_key
from tasks.runtime.store.manifest import Manifest
from tasks.runtime.store.places import store_of

_DIFFERENCES_SHOWN = 3
_RUNS_ASKED = 20  # the newest that had the node, for the time it took


@dataclass(frozen=True)
class PlannedNode:
    """A node of the run: its key, the artifact that is there for it (None: it has to run), and the reason in words.

    `renewed` are those of its inputs that a forced node may give other bytes: then it runs although it is cached.
    `resources` are what it reserves when it runs, `estimate` what it is thought to take.
    """

    node: Node
    key: StageKey
    hit: Manifest | None
    renewed: tuple[str, ...]
    reason: str
    estimate: Estimate
    resources: Resources

    @property
    def runs(self) -> bool:
        """Whether there is work to do."""
        return self.hit is None

    @property
    def may_run(self) -> bool:
        """Whether there is, or may turn out to be, work to do."""
        return self.runs or bool(self.renewed)


Plan = Mapping[str, PlannedNode]


def make_plan(config: PipelineConfig, selection: Selection, home: Home, code: Code) -> Plan:
    """The plan by node name, in order; `code` is what would run. Raises `ConfigError` where `--from` needs something that is not cached."""
    store, parameters, history = store_of(home), _parameters(selection.graph), History(home)
    plan: dict[str, PlannedNode] = {}
    for name, node in selection.graph.items():
        inputs = {input_name: plan[made_by].key.key for input_name, made_by in node.inputs.items()}
        key = stage_key(node.stage, node.settings, inputs, node.seed, code)
        forced = name in selection.forced
        found = None if forced else store.lookup(key.stage.kind, key.key)
        other = _of_other_bytes(found, node, plan) if found else []
        hit = None if other else found
        renewed = _renewed(node, plan) if hit else ()
        if hit:
            reason = _origin(hit, renewed)
        elif other:
            reason = f"made from other bytes of {', '.join(other)}"
        else:
            reason = "forced" if forced else _reason(node, key, plan, history)
        figures = _estimate(node, hit, config, history, parameters)
        plan[name] = PlannedNode(node, key, hit, renewed, reason, figures, key.stage.resources(node.settings))
    _check_given(plan, selection)
    return plan


def has_work(plan: Plan) -> bool:
    """Whether anything has to run; False where all is cached."""
    return any(planned.runs for planned in plan.values())


def reserves(plan: Plan) -> bool:
    """Whether anything that has to run needs room of its own on what it runs on."""
    return any(planned.runs and planned.resources.bundles for planned in plan.values())


def _parameters(graph: Graph) -> int | None:
    """Of the largest model that the run starts from; None where that cannot be told."""
    counts = [parameters_of(node.settings.path) for node in graph.values() if isinstance(node.settings, BaseModelConfig)]
    return None if None in counts else max((count for count in counts if count is not None), default=None)


def _check_given(plan: Plan, selection: Selection) -> None:
    if missing := [name for name in plan if name in selection.given and plan[name].runs]:
        reasons = "; ".join(f"{name}: {plan[name].reason}" for name in missing)
        raise ConfigError(
            f"--from only uses what is cached for the stages before it, and {', '.join(missing)} is not ({reasons}); "
            f"start with --from {missing[0]}, or without --from"
        )


def _renewed(node: Node, plan: Plan) -> tuple[str, ...]:
    return tuple(made_by for made_by in dict.fromkeys(node.inputs.values()) if plan[made_by].may_run)


def _of_other_bytes(found: Manifest, node: Node, plan: Plan) -> list[str]:
    """The nodes that `found` was made from whose bytes are others now."""
    made_from = found.made_from()
    now = ((given, made_by, plan[made_by].hit) for given, made_by in node.inputs.items())
    return [made_by for given, made_by, made in now if made and made_from.get(given) != made.sha256]


def _origin(hit: Manifest, renewed: Sequence[str]) -> str:
    origin = f"made by {hit.producer.run}"
    origin += f", adopted over changes of {', '.join(hit.adopted.changed)}" if hit.adopted else ""
    return origin + (f"; runs if other bytes come out of {', '.join(renewed)}" if renewed else "")


def _reason(node: Node, key: StageKey, plan: Plan, history: History) -> str:
    """Why a node that is not cached has to run: what it is made from, and its own fields that differ from the last run's."""
    follows = [made_by for made_by in dict.fromkeys(node.inputs.values()) if plan[made_by].runs]
    reasons = [f"follows {', '.join(follows)}"] if follows else []
    for run, record in history.of(node.name):
        changed = explain_difference(record.description, key.description)
        if not changed:
            return f"not finished, or not kept, since {run}"
        own = [line for line in changed if not line.startswith("inputs.")]
        more = [f"and {len(own) - _DIFFERENCES_SHOWN} more"] if len(own) > _DIFFERENCES_SHOWN else []
        return "; ".join([*reasons, *own[:_DIFFERENCES_SHOWN], *more]) or "made from other inputs"
    return "never run here"


def _estimate(node: Node, hit: Manifest | None, config: PipelineConfig, history: History, parameters: int | None) -> Estimate:
    """The formula's memory; the time of a cached result, else of the last run of this name, else the formula's."""
    formula = estimate(node, config, parameters)
    if hit:
        return Estimate(formula.memory_gib, hit.seconds)
    measured = (
        r.seconds for run, r in islice(history.of(node.name), _RUNS_ASKED) if run.startswith(f"{config.run.name}-") and r.seconds
    )
    return Estimate(formula.memory_gib, next(measured, formula.seconds))
