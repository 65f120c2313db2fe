"""The shape of the graph, which part of it a run touches, and which keys a setting changes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_processing.errors import ConfigError
from flows.config import OptionalStage, PipelineConfig
from flows.graph import Graph, ancestors, build_graph, descendants, longest_path_first
from flows.presets import Preset, resolve
from flows.selection import select
from tasks.runtime.keys import stage_key
from tasks.runtime.registry import STAGES, load_stage

# What makes sense without each stage, so that any set of them can be left out.
ADJUSTMENTS: dict[str, Any] = {
    "online.rewards": [{"kind": "procedures"}],
    "evaluate.metrics": ["procedures"],
    "compare.baseline": "base",
}


def _config(skip: frozenset[OptionalStage] = frozenset(), **overrides: Any) -> PipelineConfig:
    return resolve(Preset.quickstart, overrides={**(ADJUSTMENTS if skip else {}), "run.skip": sorted(skip), **overrides})


SKIPS = st.frozensets(st.sampled_from(OptionalStage))
GRAPH = build_graph(_config())


@given(SKIPS)
def test_every_node_comes_after_what_it_is_made_from(skip: frozenset[OptionalStage]) -> None:
    seen: set[str] = set()
    for name, node in build_graph(_config(skip)).items():
        assert name == node.name
        assert set(node.inputs.values()) <= seen, f"{name} is made from a node that is not before it"
        seen.add(name)


@given(SKIPS)
def test_a_skipped_stage_and_its_conversion_are_gone_and_nothing_else(skip: frozenset[OptionalStage]) -> None:
    graph = build_graph(_config(skip))
    gone = {f"{prefix}{stage.value}" for stage in skip for prefix in ("", "convert_", "evaluate_")}
    assert set(graph) == set(build_graph(_config())) - gone


@given(SKIPS)
def test_everything_but_side_products_leads_to_the_comparison(skip: frozenset[OptionalStage]) -> None:
    graph = build_graph(_config(skip))
    beside = set(graph) - ancestors(graph, ["compare"]) - {"compare"}
    assert beside <= {"reward_model", "convert_reward_model", "prepare_data"}


@pytest.mark.parametrize("name", STAGES)
def test_nodes_fit_the_inputs_and_settings_of_their_stages(name: str) -> None:
    stage, config = load_stage(name), _config()
    required = {i for i in stage.inputs if not i.endswith("?")}
    for node in (n for n in GRAPH.values() if n.stage == name):
        assert required <= set(node.inputs) <= {i.removesuffix("?") for i in stage.inputs}
        assert isinstance(node.config(config), stage.config)


def test_without_sft_training_starts_from_the_base_model() -> None:
    graph = build_graph(_config(frozenset({OptionalStage.sft})))
    assert graph["preference"].inputs["model"] == graph["convert_preference"].inputs["base"] == "base_model"


def test_the_scorer_is_an_input_only_of_those_who_ask_it() -> None:
    graph = build_graph(_config(**{"online.rewards": [{"kind": "procedures"}], "evaluate.metrics": ["length"]}))
    assert "reward_model" not in graph["online"].inputs
    assert "reward_model" not in graph["evaluate_sft"].inputs
    assert GRAPH["online"].inputs["reward_model"] == "convert_reward_model"


def _keys(config: PipelineConfig) -> dict[str, str]:
    keys: dict[str, str] = {}
    for name, node in build_graph(config).items():
        inputs = {i: keys[made_by] for i, made_by in node.inputs.items()}
        keys[name] = stage_key(node.stage, node.config(config), inputs, config.run.seed).key
    return keys


@pytest.mark.parametrize(
    ("override", "stage"),
    [
        ({"online.kl_coef": 0.03}, "online"),
        ({"online.rollout.temperature": 0.9}, "online"),
        ({"preference.beta": 0.2}, "preference"),
        ({"reward_model.center_coef": 0.0}, "reward_model"),
        ({"sft.max_steps": 9}, "sft"),
        ({"data.procedures.difficulty": 1}, "prepare_data"),
        ({"evaluate.max_prompts": 8}, "evaluate"),
        ({"compare.samples_shown": 1}, "compare"),
    ],
)
def test_a_setting_changes_the_keys_of_its_stage_and_of_what_follows_and_no_other(override: dict[str, Any], stage: str) -> None:
    before, after = _keys(_config()), _keys(_config(**override))
    changed = {name for name in before if before[name] != after[name]}
    own = {node.name for node in GRAPH.values() if node.stage == stage}
    assert changed == own | descendants(GRAPH, own)


def test_how_a_run_is_executed_changes_no_key() -> None:
    operational = {
        "runtime.executor": "subprocess",
        "runtime.max_parallel_stages": 7,
        "run.name": "other",
        "online.checkpoint_every_steps": 3,
        "sft.engine.threads_per_rank": 2,
        "evaluate.threads": 2,
    }
    assert _keys(_config()) == _keys(_config(**operational))


def test_until_keeps_a_stage_and_what_it_is_made_from() -> None:
    kept = set(select(GRAPH, until_stage="preference").graph)
    assert kept == {"base_model", "prepare_data", "sft", "convert_sft", "preference"}
    assert "compare" not in select(GRAPH, until_stage="evaluate").graph
    assert {"evaluate_base", "evaluate_online"} <= set(select(GRAPH, until_stage="evaluate").graph)


def test_from_wants_everything_before_the_stage_and_nothing_else() -> None:
    chosen = select(GRAPH, from_stage="online")
    assert chosen.given == ancestors(GRAPH, ["online"])
    assert set(chosen.graph) == set(GRAPH)


def test_force_takes_a_stage_with_all_its_nodes_or_one_node() -> None:
    assert select(GRAPH, force=["evaluate_sft"]).forced == {"evaluate_sft"}
    assert select(GRAPH, force=["convert"]).forced == {n for n in GRAPH if n.startswith("convert_")}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"until_stage": "evaluat"}, "did you mean 'evaluate'"),
        ({"from_stage": "ppo"}, "allowed are base_model"),
        ({"force": ["online"], "until_stage": "sft"}, "comes after --until"),
        ({"from_stage": "compare", "until_stage": "sft"}, "comes after --until"),
        ({"from_stage": "online", "force": ["sft"]}, "--force sft: comes before --from online"),
    ],
)
def test_a_name_or_a_combination_that_could_do_nothing_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        select(GRAPH, **options)


def test_online_comes_before_preference_and_both_before_evaluations_of_what_is_there() -> None:
    seconds = {
        "online": 300.0,
        "preference": 100.0,
        "evaluate_base": 40.0,
        "evaluate_sft": 40.0,
        "sft": 60.0,
        "reward_model": 60.0,
    }
    order = longest_path_first(GRAPH, seconds)
    assert order.index("online") < order.index("preference") < order.index("evaluate_sft")


@given(st.dictionaries(st.sampled_from(sorted(GRAPH)), st.floats(0, 1000)))
def test_the_order_never_puts_a_node_before_what_it_is_made_from_when_work_is_positive(seconds: dict[str, float]) -> None:
    order = longest_path_first(GRAPH, {name: seconds.get(name, 0.0) + 1.0 for name in GRAPH})
    assert sorted(order) == sorted(GRAPH)
    assert all(order.index(made_by) < order.index(name) for name in GRAPH for made_by in GRAPH[name].inputs.values())


def test_descendants_are_the_other_side_of_ancestors() -> None:
    graph: Graph = GRAPH
    for name in graph:
        assert descendants(graph, [name]) == {other for other in graph if name in ancestors(graph, [other])}
