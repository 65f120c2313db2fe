"""What stages would refuse, seen from the settings: tables that data do not give, metrics that are not measured, layouts."""

from __future__ import annotations

import os
from pathlib import Path

from data_processing.config import DataConfig
from data_processing.errors import ConfigError
from data_processing.first_prompts import first_prompts
from data_processing.procedures.policy import is_policy
from data_processing.schemas import TableName
from data_processing.settings import Settings
from evaluation.config import PRIMARY_METRICS, CompareConfig, EvaluateConfig
from flows.graph.build import deciding_metric
from flows.graph.nodes import Node, ancestors
from flows.graph.plan import Plan
from flows.running.cluster import capacity_of_machine
from flows.settings.config import PipelineConfig
from rlhf_core.cluster.capacity import Capacity
from rlhf_core.settings.models import BaseModelConfig
from rlhf_core.settings.online import OnlineConfig
from rlhf_core.settings.own_answers import IterativeConfig, SampleConfig
from rlhf_core.settings.preference import PreferenceConfig
from rlhf_core.settings.rewards.models import RewardModelReward
from rlhf_core.settings.supervised import RewardModelConfig, SftConfig
from rlhf_core.settings.training import TrainingConfig
from tasks.runtime.contract.config import ExecutorKind

# The setting of the built-in task that makes rows of a table.
_GENERATED = {"sft": "sft_rows", "preference": "preference_pairs", "prompts": "prompt_rows"}


def check_tables(plan: Plan) -> None:
    """Raise `ConfigError` for a stage that runs and needs a table that its data do not give."""
    for name, planned in plan.items():
        data = _data_of(planned.node, plan)
        if not planned.runs or data is None or not (wanted := tables_of(planned.node)):
            continue
        given = tables_given(data)
        if given.isdisjoint(wanted):
            ways = [f"sources in data.{table}" for table in wanted]
            ways += [f"data.procedures.{_GENERATED[table]}" for table in wanted if table in _GENERATED]
            without = f", or take the entry out (pipeline.{planned.node.entry}: null)" if planned.node.entry else ""
            raise ConfigError(
                f"{name}: needs the table {' or '.join(map(repr, wanted))}, and the data give only {sorted(given)}; give "
                f"{' or '.join(ways)}{without}"
            )


def tables_of(node: Node) -> tuple[TableName, ...]:
    """The tables of which a node needs one, none where it needs no data."""
    settings = node.settings
    if isinstance(settings, (SampleConfig, IterativeConfig)):
        return ("prompts",)
    if isinstance(settings, PreferenceConfig) and settings.row.learns_from == "answers":
        return ("preference", "unpaired")
    if isinstance(settings, RewardModelConfig) and settings.granularity == "step":
        return ("stepwise",)
    by_settings: dict[type[Settings], TableName] = {
        SftConfig: "sft",
        RewardModelConfig: "preference",
        PreferenceConfig: "preference",
        OnlineConfig: "prompts",
        EvaluateConfig: "prompts",
    }
    return tuple(table for kind, table in by_settings.items() if isinstance(settings, kind))


def tables_given(data: DataConfig) -> set[str]:
    """The tables that will have rows, as far as settings tell."""
    made = {table for table, field in _GENERATED.items() if data.procedures and getattr(data.procedures, field)}
    return made | {table for table in ("sft", "preference", "prompts", "unpaired", "stepwise") if getattr(data, table)}


def check_metrics(plan: Plan) -> None:
    """Raise `ConfigError` where the comparison runs and is to decide by what no evaluation measures."""
    graph = {name: planned.node for name, planned in plan.items()}
    if "compare" not in plan or not plan["compare"].runs or not isinstance(graph["compare"].settings, CompareConfig):
        return
    evaluation = graph[next(iter(graph["compare"].inputs.values()))]
    data = _data_of(evaluation, plan)
    if data is None or not isinstance(evaluation.settings, EvaluateConfig):
        return
    given = tables_given(data)
    can_be = {
        "procedures": _has_policies(data, evaluation.seed),
        "reward": "reward_model" in evaluation.inputs,
        "perplexity": "sft" in given,
        "improvement": "baseline" in evaluation.inputs,
        "length": True,
    }
    asked = [metric for metric in evaluation.settings.metrics if can_be.get(metric)]
    allowed = [metric for metric in PRIMARY_METRICS if metric.partition(".")[0] in asked]
    chosen = deciding_metric(graph)
    # Whether an answer was cut is measured with its length, of which neither more nor less is better; so it is with the KL.
    family = "length" if chosen == "truncated" else (chosen or "").partition(".")[0]
    if family not in asked or chosen == "length":
        what = f"'{chosen}' is not measured, or cannot decide," if chosen else "no metric that can decide is measured"
        wanted = (
            f"allowed are {', '.join(allowed)}" if allowed else "give evaluate.metrics one of them, and the data that it needs"
        )
        raise ConfigError(f"compare.primary_metric: {what} with these data and settings ({', '.join(PRIMARY_METRICS)}); {wanted}")


def check_segments(plan: Plan) -> None:
    """Raise `ConfigError` for an online stage that runs with rewards of segments, and whose reward model is not trained on them."""
    for name, planned in plan.items():
        settings = planned.node.settings
        if not planned.runs or not isinstance(settings, OnlineConfig) or settings.credit.kind != "segment":
            continue
        for source in (source for source in settings.rewards if isinstance(source, RewardModelReward)):
            made_by = plan[planned.node.inputs[source.input]].node if source.input in planned.node.inputs else None
            trained = plan[made_by.inputs["checkpoint"]].node if made_by and "checkpoint" in made_by.inputs else None
            if trained and isinstance(trained.settings, RewardModelConfig) and trained.settings.granularity != "segment":
                raise ConfigError(
                    f"{name}: credit 'segment' needs rewards of segments, and entry '{trained.entry}' trains a reward model of granularity "
                    f"'{trained.settings.granularity}'; set pipeline.{trained.entry}.set.granularity=segment, or leave credit out"
                )


def check_devices(config: PipelineConfig, plan: Plan) -> None:
    """Raise `ConfigError` for a stage that reserves more than this machine has, where it runs here."""
    if not (config.runtime.executor is ExecutorKind.ray and os.environ.get("RAY_ADDRESS")):
        check_room(plan, capacity_of_machine())


def check_room(plan: Plan, capacity: Capacity) -> None:
    """Raise `ConfigError` for a stage that runs and reserves more than there can ever be."""
    for name, planned in plan.items():
        if planned.runs and (refusal := capacity.refusal(planned.resources)):
            raise ConfigError(f"{name}: {refusal}")


def check_adapters(plan: Plan) -> None:
    """Raise `ConfigError` for `lora.target_modules` that the base model, where it is a local folder, has no layers for."""
    graph = {name: planned.node for name, planned in plan.items()}
    for name, planned in plan.items():
        settings = planned.node.settings
        if (
            not planned.runs
            or not isinstance(settings, TrainingConfig)
            or not (settings.lora.rank and settings.lora.target_modules)
        ):
            continue
        for above in sorted(ancestors(graph, [name])):
            model = graph[above].settings
            if isinstance(model, BaseModelConfig) and (folder := Path(model.path).expanduser()).is_dir():
                from rlhf_core.models.lora import check_targets

                check_targets(folder, settings.lora.target_modules, name, trust_remote_code=model.trust_remote_code)


def _data_of(node: Node, plan: Plan) -> DataConfig | None:
    made_by = node.inputs.get("data")
    settings = plan[made_by].node.settings if made_by else None
    return settings if isinstance(settings, DataConfig) else None


def _has_policies(data: DataConfig, seed: int) -> bool:
    """Whether prompts are those of the built-in task, or labelled as they are."""
    if data.asks_for_procedures:
        return True
    return any(row["label"] is not None and is_policy(row["label"]) for row in first_prompts(data, 1, seed))
