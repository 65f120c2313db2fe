"""From entries to nodes, which part of the graph a run touches, and which keys a setting changes."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_processing.errors import ConfigError
from evaluation.config import CompareConfig
from flows.graph.build import build_graph, told_of_unused
from flows.graph.nodes import Graph, ancestors, longest_path_first
from flows.graph.plan import Plan, PlannedNode, has_work, make_plan, reserves
from flows.graph.selection import select
from flows.settings.config import PipelineConfig
from flows.settings.layers import validate
from flows.settings.presets import known_presets, resolve
from rlhf_core.settings.online import OnlineConfig
from rlhf_core.settings.preference import PreferenceConfig
from tasks.runtime.contract.home import Home
from tasks.runtime.contract.registry import load_stage
from tasks.runtime.keys.closure import Code
from tasks.runtime.keys.stage_key import stage_key
from tasks.runtime.store.artifacts import Store
from tasks.runtime.store.base import reference
from tasks.runtime.store.manifest import Manifest
from tasks.runtime.store.records import NodeRecord, write_node
from tests.runtime.published import manifest_of

GRAPH = build_graph(resolve("quickstart"))
FIVE: dict[str, Any] = {
    "sft": {"stage": "sft"},
    "rm": {"stage": "reward_model", "model": "sft"},
    "dpo": {"stage": "preference", "model": "sft"},
    "ppo": {"stage": "online", "model": "sft", "reward_model": "rm"},
    "grpo": {"stage": "online", "model": "dpo", "reward_model": "rm", "set": {"method": "grpo", "kl_coef": 0.0}},
}


def _graph(pipeline: dict[str, Any], **sections: Any) -> Graph:
    return build_graph(validate({"pipeline": pipeline, **sections}))


def _refusal(pipeline: dict[str, Any], **sections: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        _graph(pipeline, **sections)
    return str(caught.value)


def _compare(graph: Graph) -> CompareConfig:
    settings = graph["compare"].settings
    assert isinstance(settings, CompareConfig)
    return settings


# --- entries become nodes


def test_entries_are_chained_and_set_beside_each_other_as_they_are_named() -> None:
    graph = _graph(FIVE)
    made_from = {name: dict(graph[name].inputs) for name in FIVE}
    assert made_from == {
        "sft": {"model": "base", "data": "data"},
        "rm": {"model": "convert_sft", "data": "data"},
        "dpo": {"model": "convert_sft", "data": "data"},
        "ppo": {"model": "convert_sft", "data": "data", "reward_model": "convert_rm"},
        "grpo": {"model": "convert_dpo", "data": "data", "reward_model": "convert_rm"},
    }
    assert dict(graph["convert_grpo"].inputs) == {"checkpoint": "grpo", "base": "convert_dpo"}
    assert list(graph["compare"].inputs) == ["base", "sft", "dpo", "ppo", "grpo"]


def test_what_is_set_for_an_entry_is_laid_over_its_section_for_that_entry_alone() -> None:
    graph = _graph(FIVE, online={"kl_coef": 0.5, "steps": 3})
    ppo, grpo = graph["ppo"].settings, graph["grpo"].settings
    assert isinstance(ppo, OnlineConfig) and isinstance(grpo, OnlineConfig)
    assert (ppo.method, ppo.kl_coef, ppo.steps) == ("ppo", 0.5, 3)
    assert (grpo.method, grpo.kl_coef, grpo.steps) == ("grpo", 0.0, 3)


def test_two_entries_of_one_stage_with_other_names_for_the_same_settings_share_their_key() -> None:
    graph = _graph({"one": {"stage": "sft"}, "two": {"stage": "sft", "model": "base"}})
    keys = _keys(graph)
    assert keys["one"] == keys["two"]


@given(st.permutations(list(FIVE)))
def test_the_order_in_which_entries_are_written_changes_no_node(order: list[str]) -> None:
    graph, written = _graph(FIVE), _graph({name: FIVE[name] for name in order})
    compared = graph.keys() - {"compare"}  # whose settings hold the order of the report
    assert {name: written[name] for name in compared} == {name: graph[name] for name in compared}


@st.composite
def pipelines(draw: st.DrawFn) -> dict[str, Any]:
    """Entries that each start from one before them, some swept, some in rounds."""
    entries: dict[str, Any] = {}
    models = ["base"]
    for number in range(draw(st.integers(1, 5))):
        stage = draw(st.sampled_from(["sft", "preference"]))
        entry: dict[str, Any] = {"stage": stage, "model": draw(st.sampled_from(models))}
        if draw(st.booleans()):
            entry["each"] = {"seed": [1, 2], "batch_size": [4, 8]} if draw(st.booleans()) else {"batch_size": [4, 8]}
        if draw(st.booleans()):
            entry["rounds"] = 2
        entries[f"m{number}"] = entry
        models.append(f"m{number}")
    return entries


@pytest.mark.seconds
@given(pipelines())
def test_every_node_comes_after_what_it_is_made_from_and_fits_its_stage(pipeline: dict[str, Any]) -> None:
    seen: set[str] = set()
    for name, node in _graph(pipeline).items():
        stage = load_stage(node.stage)
        assert name == node.name
        assert set(node.inputs.values()) <= seen, f"{name} is made from a node that is not before it"
        assert isinstance(node.settings, stage.config)
        stage_key(node.stage, node.settings, dict.fromkeys(node.inputs, "k"), node.seed)
        seen.add(name)


@given(pipelines())
def test_every_model_of_a_last_round_is_evaluated_and_compared(pipeline: dict[str, Any]) -> None:
    graph = _graph(pipeline)
    last = {n for n, node in graph.items() if node.entry in pipeline and "round=1" not in n}
    assert set(graph["compare"].inputs) == last | {"base"}


def test_null_takes_an_entry_out() -> None:
    assert "grpo" not in _graph({**FIVE, "grpo": None})


def test_sources_that_nothing_needs_are_left_out() -> None:
    pipeline = {"base": {"stage": "base_model", "evaluate": False}}
    assert set(_graph(pipeline)) == {"base"}


def test_an_entry_may_start_from_another_model_and_other_data() -> None:
    pipeline = {
        "other": {"stage": "base_model", "set": {"path": "/models/other"}, "evaluate": False},
        "more": {"stage": "prepare_data", "set": {"procedures.difficulty": 3}},
        "sft": {"stage": "sft", "model": "other", "data": "more"},
    }
    graph = _graph(pipeline)
    assert dict(graph["sft"].inputs) == {"model": "other", "data": "more"}
    assert graph["other"].settings.path == "/models/other"  # type: ignore[attr-defined]
    assert graph["more"].settings.procedures.difficulty == 3  # type: ignore[attr-defined]
    assert graph["data"].settings.procedures.difficulty != 3  # type: ignore[attr-defined]


# --- sweeps and rounds


def test_a_sweep_is_a_node_for_every_combination_and_its_followers_follow_each() -> None:
    graph = _graph({"sft": {"stage": "sft", "each": {"optimizer.learning_rate": [1e-3, 1e-4], "seed": [1, 2]}}, "dpo": DPO})
    names = [f"optimizer.learning_rate={rate},seed={seed}" for rate, seed in product(("0.001", "0.0001"), (1, 2))]
    followed = [name.replace("optimizer", "sft.optimizer").replace("seed", "sft.seed") for name in names]
    assert [n for n, node in graph.items() if node.entry == "sft"] == [f"sft@{name}" for name in names]
    assert [n for n, node in graph.items() if node.entry == "dpo"] == [f"dpo@{name}" for name in followed]
    assert graph[f"dpo@{followed[3]}"].inputs["model"] == f"convert_sft@{names[3]}"
    assert graph[f"sft@{names[3]}"].settings.optimizer.learning_rate == 1e-4  # type: ignore[attr-defined]


DPO = {"stage": "preference", "model": "sft"}


def test_the_seed_of_a_variant_is_that_of_all_that_follows_it() -> None:
    graph = _graph({"sft": {"stage": "sft", "each": {"seed": [1, 2]}}, "dpo": DPO, "own": {**DPO, "seed": 9}})
    assert [graph[f"dpo@sft.seed={seed}"].seed for seed in (1, 2)] == [1, 2]
    assert graph["convert_dpo@sft.seed=2"].seed == 2
    assert graph["own@sft.seed=1"].seed == 9
    assert {node.seed for node in graph.values() if node.stage == "evaluate"} == {17}, "models answer under the same seed"


def test_a_follower_may_say_which_variants_it_means() -> None:
    sft = {"stage": "sft", "each": {"batch_size": [4, 8], "seed": [1, 2]}}
    graph = _graph({"sft": sft, "one": {**DPO, "model": "sft@batch_size=4,seed=2"}, "some": {**DPO, "model": "sft@batch_size=8"}})
    assert graph["one"].inputs["model"] == "convert_sft@batch_size=4,seed=2"
    assert [n for n, node in graph.items() if node.entry == "some"] == ["some@sft.seed=1", "some@sft.seed=2"]
    assert graph["some@sft.seed=1"].inputs["model"] == "convert_sft@batch_size=8,seed=1"


def test_two_inputs_that_follow_the_same_sweep_stay_together() -> None:
    pipeline = {
        "sft": {"stage": "sft", "each": {"seed": [1, 2]}},
        "rm": {"stage": "reward_model", "model": "sft"},
        "ppo": {"stage": "online", "model": "sft", "reward_model": "rm"},
    }
    graph = _graph(pipeline, evaluate={"metrics": ["length"]})
    ppo = {n: dict(node.inputs) for n, node in graph.items() if node.entry == "ppo"}
    assert {name: (i["model"], i["reward_model"]) for name, i in ppo.items()} == {
        f"ppo@sft.seed={seed}": (f"convert_sft@seed={seed}", f"convert_rm@sft.seed={seed}") for seed in (1, 2)
    }


def test_each_round_starts_from_the_model_of_the_round_before() -> None:
    graph = _graph({"sft": {"stage": "sft"}, "dpo": {**DPO, "rounds": 3}, "ppo": {**DPO, "model": "dpo"}})
    starts = [graph[f"dpo@round={n}"].inputs["model"] for n in (1, 2, 3)]
    assert starts == ["convert_sft", "convert_dpo@round=1", "convert_dpo@round=2"]
    assert graph["ppo"].inputs["model"] == "convert_dpo@round=3", "an entry is its last round"
    assert "evaluate_dpo@round=1" not in graph
    named = _graph({"sft": {"stage": "sft"}, "dpo": {**DPO, "rounds": 3}}, compare={"candidates": ["dpo@round=1", "dpo"]})
    assert _compare(named).candidates == ["dpo@round=1", "dpo@round=3"]


def test_what_cannot_stand_in_a_name_is_numbered() -> None:
    rewards = [[{"kind": "procedures"}], [{"kind": "procedures", "weight": 2.0}]]
    graph = _graph({"ppo": {"stage": "online", "each": {"rewards": rewards}}})
    assert [n for n, node in graph.items() if node.entry == "ppo"] == ["ppo@rewards=#1", "ppo@rewards=#2"]


# --- evaluation and comparison


def test_the_scorer_is_an_input_only_of_those_who_ask_it() -> None:
    graph = _graph(FIVE, online={"rewards": [{"kind": "procedures"}]}, evaluate={"metrics": ["length"]})
    assert "reward_model" not in graph["evaluate_sft"].inputs
    only = _graph({"rm": FIVE["rm"] | {"model": "base"}, "ppo": {"stage": "online"}})
    assert only["ppo"].inputs["reward_model"] == only["evaluate_ppo"].inputs["reward_model"] == "convert_rm"
    without = _graph({"ppo": {"stage": "online"}}, online={"rewards": [{"kind": "procedures"}]})
    assert "reward_model" not in without["ppo"].inputs and "reward_model" not in without["evaluate_ppo"].inputs


def test_the_first_trained_model_is_the_baseline_where_others_come_after_it() -> None:
    assert (_compare(_graph(FIVE)).baseline, _compare(_graph(FIVE)).candidates) == ("sft", ["dpo", "ppo", "grpo"])
    alone = _compare(_graph({"sft": {"stage": "sft"}}))
    assert (alone.baseline, alone.candidates) == ("base", ["sft"])
    swept = _compare(_graph({"sft": {"stage": "sft", "each": {"batch_size": [4, 8]}}}))
    assert (swept.baseline, swept.candidates) == ("base", ["sft@batch_size=4", "sft@batch_size=8"])


def test_a_candidate_that_is_swept_is_every_variant() -> None:
    ppo = {**FIVE["ppo"], "each": {"kl_coef": [0.0, 0.1]}}
    assert _compare(_graph({**FIVE, "ppo": ppo}, compare={"candidates": ["ppo"]})).candidates == [
        "ppo@kl_coef=0.0",
        "ppo@kl_coef=0.1",
    ]


def test_variants_that_differ_in_their_seed_only_are_one_model_to_the_comparison() -> None:
    sft = {"stage": "sft", "each": {"seed": [1, 2]}}
    dpo = {**DPO, "each": {"beta": [0.1, 0.5]}}
    compare = _compare(_graph({"sft": sft, "dpo": dpo}))
    assert (compare.baseline, compare.candidates) == ("sft", ["dpo@beta=0.1", "dpo@beta=0.5"])
    assert compare.seeds == {
        "sft": ["sft@seed=1", "sft@seed=2"],
        "dpo@beta=0.1": ["dpo@sft.seed=1,beta=0.1", "dpo@sft.seed=2,beta=0.1"],
        "dpo@beta=0.5": ["dpo@sft.seed=1,beta=0.5", "dpo@sft.seed=2,beta=0.5"],
    }
    assert len(compare.models) == 7


def test_an_entry_can_be_kept_out_of_the_comparison() -> None:
    graph = _graph({**FIVE, "dpo": {**FIVE["dpo"], "evaluate": False}})
    assert "evaluate_dpo" not in graph and "dpo" not in _compare(graph).models


def test_an_entry_that_nothing_uses_and_nothing_evaluates_is_named() -> None:
    pipeline = {**FIVE, "rm2": FIVE["rm"], "more": {"stage": "prepare_data"}, "dpo2": {**FIVE["dpo"], "evaluate": False}}
    told = told_of_unused(_graph(pipeline, evaluate={"reward_model": "rm"}))
    assert [line.split("'")[1] for line in told] == ["rm2", "more", "dpo2"]
    assert told_of_unused(_graph(FIVE)) == []


def test_an_online_entry_takes_several_reward_models() -> None:
    rewards = [{"kind": "reward_model"}, {"kind": "reward_model", "input": "safety", "name": "safety"}]
    pipeline = {
        **FIVE,
        "harmless": {"stage": "reward_model", "model": "sft"},
        "ppo": {**FIVE["ppo"], "safety": "harmless", "set": {"rewards": rewards}},
    }
    ppo = _graph(pipeline, evaluate={"reward_model": "rm"})["ppo"]
    assert ppo.inputs == {"model": "convert_sft", "data": "data", "reward_model": "convert_rm", "safety": "convert_harmless"}


# --- what is refused


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ppo": {"stage": "onlin"}}, ["pipeline.ppo.stage", "'onlin'", "did you mean 'online'"]),
        ({"ppo": {"stage": "online", "modell": "sft"}}, ["pipeline.ppo", "'modell'", "did you mean 'model'", "reward_model"]),
        ({"ppo": {"stage": "online", "model": "sftt"}}, ["pipeline.ppo.model", "'sftt'", "did you mean 'sft'"]),
        ({"dpo": {"stage": "preference", "model": "data"}}, ["pipeline.dpo.model", "'data' makes a data", "policy", "base, sft"]),
        ({"dpo": {"stage": "preference", "data": "sft"}}, ["pipeline.dpo.data", "'sft' makes a policy", "a data is expected"]),
        ({"sft": {"stage": "sft", "model": "grpo"}}, ["in a circle", "sft -> grpo -> dpo -> sft"]),
        ({"sft": {"stage": "sft", "model": "sft"}}, ["in a circle", "sft -> sft"]),
        ({"rm": None}, ["pipeline.ppo.reward_model", "'rm'"]),
        ({"ppo": {**FIVE["ppo"], "safety": "rm"}}, ["pipeline.ppo", "'safety' is asked by no reward", "input: safety"]),
        (
            {"ppo": {**FIVE["ppo"], "safty": "rm", "set": {"rewards": [{"kind": "reward_model", "input": "safety"}]}}},
            ["pipeline.ppo", "ask the reward model 'safety'", "did you mean 'safty'", "safety: rm"],
        ),
        ({"rm": None, "ppo": {"stage": "online"}, "grpo": None}, ["pipeline.ppo", "'reward_model'", "no entry makes a scorer"]),
        ({"rm2": FIVE["rm"], "ppo": {"stage": "online"}}, ["pipeline.ppo", "say which 'reward_model'", "rm, rm2"]),
        ({"rm2": FIVE["rm"]}, ["evaluate.reward_model", "rm, rm2"]),
        ({"grpo": {**FIVE["grpo"], "set": {"methd": "grpo"}}}, ["pipeline.grpo.set.methd", "did you mean 'method'"]),
        ({"grpo": {**FIVE["grpo"], "set": {"kl_coef": -1}}}, ["pipeline.grpo.set.kl_coef", "-1", "greater than or equal to 0"]),
        ({"grpo": {**FIVE["grpo"], "each": {"kl_coef": [0.0, -1]}}}, ["pipeline.grpo.set.kl_coef", "-1"]),
        ({"grpo": {**FIVE["grpo"], "each": {"kl_coef": []}}}, ["pipeline.grpo.each", "'kl_coef'", "at least one"]),
        ({"grpo": {**FIVE["grpo"], "rounds": 0}}, ["pipeline.grpo.rounds", "0"]),
        ({"more": {"stage": "prepare_data", "rounds": 2}}, ["pipeline.more.rounds", "takes no data"]),
        ({"dpo": {**FIVE["dpo"], "model": "sft@seed=1"}}, ["pipeline.dpo.model", "'sft@seed=1'", "there are sft"]),
        ({"dpo": {**FIVE["dpo"], "model": "sft@seed"}}, ["pipeline.dpo.model", "ENTRY@FIELD=VALUE"]),
        ({"evaluate_x": {"stage": "sft"}}, ["pipeline", "'evaluate_x'"]),
        ({"a b": {"stage": "sft"}}, ["pipeline", "'a b'", "letters"]),
        ({"x": {"model": "sft"}}, ["pipeline.x.stage", "missing"]),
        ({"x": {"stage": "sft", "model": 3}}, ["pipeline.x.model", "3", "string"]),
    ],
)
def test_a_wrong_entry_is_answered_with_its_name_and_what_is_allowed(change: dict[str, Any], said: list[str]) -> None:
    message = _refusal({**FIVE, **change})
    assert [text for text in said if text not in message] == [], message


@pytest.mark.parametrize(
    ("compare", "said"),
    [
        ({"candidates": ["sft"], "baseline": "sft"}, ["compare.candidates", "'sft'", "baseline"]),
        ({"candidates": ["onlin"]}, ["compare.candidates", "'onlin'"]),
        ({"candidates": ["rm"]}, ["compare.candidates", "makes a scorer"]),
        ({"baseline": "sfft"}, ["compare.baseline", "did you mean 'sft'"]),
        ({"candidates": ["off"]}, ["'off'", "evaluate is false"]),
        ({"baseline": "swept"}, ["compare.baseline", "several variants", "swept@beta=0.1, swept@beta=0.2"]),
    ],
)
def test_a_comparison_of_what_is_not_there_is_refused(compare: dict[str, Any], said: list[str]) -> None:
    more = {"off": {**DPO, "evaluate": False}, "swept": {**DPO, "each": {"beta": [0.1, 0.2]}}}
    message = _refusal({**FIVE, **more}, compare=compare)
    assert [text for text in said if text not in message] == [], message


# --- keys


def _keys(graph: Graph) -> dict[str, str]:
    keys: dict[str, str] = {}
    for name, node in graph.items():
        inputs = {i: keys[made_by] for i, made_by in node.inputs.items()}
        keys[name] = stage_key(node.stage, node.settings, inputs, node.seed).key
    return keys


def _changed(**overrides: Any) -> set[str]:
    before, after = _keys(GRAPH), _keys(build_graph(resolve("quickstart", overrides=overrides)))
    return {name for name in before if before[name] != after.get(name)}


@pytest.mark.parametrize(
    ("override", "entry"),
    [
        ({"online.kl_coef": 0.03}, "online"),
        ({"pipeline.online.set.kl_coef": 0.03}, "online"),
        ({"online.rollout.temperature": 0.9}, "online"),
        ({"preference.beta": 0.2}, "preference"),
        ({"pipeline.preference.seed": 3}, "preference"),
        ({"reward_model.center_coef": 0.0}, "reward_model"),
        ({"sft.max_steps": 9}, "sft"),
        ({"data.procedures.difficulty": 1}, "data"),
        ({"evaluate.max_prompts": 8}, "evaluate"),
        ({"compare.samples_shown": 1}, "compare"),
    ],
)
def test_a_setting_changes_the_keys_of_its_entry_and_of_what_follows_and_no_other(override: dict[str, Any], entry: str) -> None:
    own = {node.name for node in GRAPH.values() if entry in (node.entry, node.stage)}
    assert _changed(**override) == own | {name for name in GRAPH if own & ancestors(GRAPH, [name])}


def test_how_a_run_is_executed_changes_no_key() -> None:
    operational = {
        "runtime.executor": "subprocess",
        "runtime.max_parallel_stages": 7,
        "run.name": "other",
        "online.checkpoint_every_steps": 3,
        "sft.engine.threads_per_rank": 2,
        "evaluate.threads": 2,
    }
    assert _changed(**operational) == set()


# --- parts of the graph


def test_until_keeps_an_entry_and_what_it_is_made_from() -> None:
    kept = set(select(GRAPH, until_stage="preference").graph)
    assert kept == {"base", "data", "sft", "convert_sft", "preference"}
    assert "compare" not in select(GRAPH, until_stage="evaluate").graph
    assert {"evaluate_base", "evaluate_online"} <= set(select(GRAPH, until_stage="evaluate").graph)


def test_a_name_is_a_node_before_an_entry_and_an_entry_before_a_stage() -> None:
    graph = _graph({**FIVE, "sft2": {"stage": "sft", "each": {"seed": [1, 2]}}})
    assert select(graph, force=["sft"]).forced == {"sft"}
    assert select(graph, force=["sft2"]).forced == {"sft2@seed=1", "sft2@seed=2"}
    assert select(graph, force=["online"]).forced == {"ppo", "grpo"}


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
        ({"from_stage": "ppo"}, "allowed are base, base_model"),
        ({"force": ["online"], "until_stage": "sft"}, "comes after --until"),
        ({"from_stage": "compare", "until_stage": "sft"}, "comes after --until"),
        ({"from_stage": "online", "force": ["sft"]}, "--force sft: comes before --from online"),
    ],
)
def test_a_name_or_a_combination_that_could_do_nothing_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        select(GRAPH, **options)


SWEPT = {"online": {"stage": "online", "model": "sft", "each": {"kl_coef": [0.0, 0.1]}}, "preference.rounds": 2}


@pytest.mark.seconds
@pytest.mark.parametrize("preset", [*sorted(known_presets()), "swept"])
def test_every_combination_of_from_until_and_force_is_planned_or_one_clear_refusal(preset: str, tmp_path: Path) -> None:
    overrides = {f"pipeline.{name}": value for name, value in SWEPT.items()} if preset == "swept" else {}
    config = resolve("tiny" if preset == "swept" else preset, overrides=overrides)
    graph, home, code = build_graph(config), Home.open(tmp_path / "home"), Code()
    names = [None, *dict.fromkeys(part for node in graph.values() for part in (node.entry, node.stage, node.name) if part)]
    planned: set[tuple[frozenset[str], ...]] = set()
    for first, last, forced in product(names, names, names):
        try:
            chosen = select(graph, first, last, [forced] if forced else [])
        except ConfigError:
            continue
        assert chosen.given | chosen.forced <= set(chosen.graph)
        assert not chosen.given & chosen.forced
        seen = (frozenset(chosen.graph), frozenset(chosen.given))  # what is forced runs, whatever is there
        if seen in planned:
            continue
        planned.add(seen)
        try:
            plan = make_plan(config, chosen, home, code)
        except ConfigError as error:
            assert chosen.given and "start with --from" in str(error)  # what has to be there is not
            continue
        assert list(plan) == list(chosen.graph)
    assert len(planned) > len(graph)


# --- what a plan says of each node

TINY = resolve("tiny")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.open(tmp_path / "home")


def _plan(home: Home, overrides: dict[str, Any] | None = None, **options: Any) -> Plan:
    config = resolve("tiny", overrides=overrides) if overrides else TINY
    return make_plan(config, select(build_graph(config), **options), home, Code())


def _made(home: Home, planned: PlannedNode, text: str = "hello", **inputs: Manifest) -> Manifest:
    """The node's artifact in the store, made in 7 seconds."""
    store, kind, key = Store(home.store), planned.key.stage.kind, planned.key.key
    staging = store.staging(kind, key, 1)
    (staging / "a.txt").write_text(text)
    refs = {name: reference(store, made) for name, made in inputs.items()}
    manifest = manifest_of(store, staging, key=key).model_copy(update={"kind": kind, "inputs": refs, "seconds": 7.0})
    store.publish(staging, manifest)
    return manifest


def _ran(home: Home, planned: PlannedNode, run: str, seconds: float | None = None, **config: Any) -> None:
    """The record of the node in a run in which its settings had the values in `config`."""
    description = {**planned.key.description, "config": {**planned.key.description["config"], **config}}
    record = NodeRecord(node=planned.node.name, stage="sft", key="k" * 64, description=description, seconds=seconds)
    write_node(home, run, record)


def test_a_node_that_runs_says_what_it_follows_and_three_of_its_own_differences(home: Home) -> None:
    planned = _plan(home)
    assert {node.reason for node in planned.values()} == {"never run here"}
    batch_size = planned["sft"].key.description["config"]["batch_size"]
    _ran(home, planned["sft"], "tiny-1", batch_size=batch_size + 1)
    assert _plan(home)["sft"].reason == f"follows base, data; config.batch_size: {batch_size + 1} -> {batch_size}"
    _ran(home, planned["sft"], "tiny-1", a=1, b=2, c=3)
    differences = "; ".join(f"config.{name}: {value} -> (absent)" for name, value in (("a", 1), ("b", 2), ("c", 3)))
    assert _plan(home)["sft"].reason == f"follows base, data; {differences}"
    _ran(home, planned["sft"], "tiny-1", a=1, b=2, c=3, d=4, e=5)
    assert _plan(home)["sft"].reason == f"follows base, data; {differences}; and 2 more"
    _ran(home, planned["sft"], "tiny-1")
    assert _plan(home)["sft"].reason == "not finished, or not kept, since tiny-1"


def test_a_cached_node_says_who_made_it_and_runs_where_its_inputs_have_other_bytes(home: Home) -> None:
    planned = _plan(home)
    base, data = _made(home, planned["base"]), _made(home, planned["data"])
    made = _made(home, planned["sft"], model=base, data=data)
    sft = _plan(home)["sft"]
    assert (sft.hit, sft.renewed, sft.reason, sft.runs, sft.may_run) == (made, (), "made by run", False, False)
    forced = _plan(home, force=["data"])
    assert (forced["data"].reason, forced["data"].hit) == ("forced", None)
    assert forced["sft"].reason == "made by run; runs if other bytes come out of data"
    assert (forced["sft"].runs, forced["sft"].may_run, forced["sft"].renewed) == (False, True, ("data",))
    _made(home, planned["data"], "other")
    other = _plan(home)["sft"]
    assert (other.reason, other.runs) == ("made from other bytes of data", True)


def test_from_takes_nothing_that_is_not_cached(home: Home) -> None:
    _made(home, _plan(home)["base"])
    with pytest.raises(ConfigError, match=r"cached .* and data is not \(data: never run here\); start with --from data"):
        _plan(home, from_stage="sft")
    _made(home, _plan(home)["data"])
    assert _plan(home, from_stage="sft")["sft"].runs


def test_a_node_is_thought_to_take_what_it_took_in_the_last_run_of_that_name(home: Home) -> None:
    planned = _plan(home)
    formula = planned["sft"].estimate
    assert formula.memory_gib > 1.1 and formula.seconds is not None, "the model's size is known"
    _ran(home, planned["sft"], "other-1", seconds=99.0)
    assert _plan(home)["sft"].estimate == formula
    _ran(home, planned["sft"], "tiny-1", seconds=12.5)
    assert _plan(home)["sft"].estimate.seconds == 12.5
    _made(home, planned["base"])
    assert _plan(home)["base"].estimate.seconds == 7.0


def test_a_plan_knows_whether_there_is_work_and_whether_that_reserves_anything(home: Home) -> None:
    base = _plan(home, until_stage="base")
    assert has_work(base) and not reserves(base)
    assert not reserves(_plan(home, until_stage="sft"))
    two_ranks = {"sft.engine.world_size": 2}
    assert reserves(_plan(home, two_ranks, until_stage="sft"))
    for name in ("base", "data"):
        _made(home, _plan(home)[name])
    assert not has_work(_plan(home, until_stage="base"))
    cached = _plan(home, two_ranks)
    _made(home, cached["sft"], model=_hit(cached, "base"), data=_hit(cached, "data"))
    assert not reserves(_plan(home, two_ranks, until_stage="sft")), "what is cached needs no room"


def _hit(plan: Plan, name: str) -> Manifest:
    found = plan[name].hit
    assert found is not None
    return found


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


def test_settings_of_a_variant_are_checked_as_a_whole() -> None:
    graph = _graph({"dpo": {"stage": "preference", "set": {"method": "cdpo"}, "each": {"label_smoothing": [0.1, 0.2]}}})
    found = [node.settings for node in graph.values() if node.entry == "dpo"]
    assert [s.label_smoothing for s in found if isinstance(s, PreferenceConfig)] == [0.1, 0.2]


def test_a_pipeline_without_entries_evaluates_the_base_model() -> None:
    assert set(build_graph(PipelineConfig())) == {"base", "data", "evaluate_base", "compare"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"pipeline.preference.set": {"method": "orpo", "beta": 0.3}},
            r"pipeline\.preference\.set\.beta=0\.3 with method 'orpo', which does not read it \(read by dpo, .*kto\): leave it out",
        ),
        (
            {"pipeline.online.set": {"method": "grpo", "critic": {"warmup_steps": 1}}},
            r"pipeline\.online\.set\.critic\.warmup_steps=1 with method 'grpo'.*read by ppo.*or at 0",
        ),
        (
            {"pipeline.online.set": {"method": "gspo"}, "pipeline.online.each": {"dual_clip": [3.0]}},
            r"set\.dual_clip=3\.0 with method 'gspo'",
        ),
        (
            {"preference.kto.desirable_weight": 2.0},
            r"preference\.kto\.desirable_weight=2\.0 with method 'dpo'.*read by kto.*or at 1\.0",
        ),
        ({"preference.own": {"tau": 1}}, r"preference\.own\.tau=1 with method 'dpo'.*read by none of ours"),
    ],
)
def test_a_setting_that_the_method_does_not_read_is_named(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_graph(resolve("tiny", overrides=overrides))


def test_a_section_may_have_settings_of_several_methods_and_each_entry_has_its_own() -> None:
    entries = {
        "pipeline.kto": {"stage": "preference", "model": "sft", "set": {"method": "kto"}},
        "preference.kto.desirable_weight": 2.0,
    }
    graph, plain = build_graph(resolve("tiny", overrides=entries)), build_graph(resolve("tiny"))
    assert graph["preference"].settings == plain["preference"].settings, "what KTO reads does not change DPO's key"
    settings = graph["kto"].settings
    assert isinstance(settings, PreferenceConfig)
    assert settings.kto.desirable_weight == 2.0


# --- merges and teachers


MERGED: dict[str, Any] = {"sft": {"stage": "sft"}, "dpo": {"stage": "preference", "model": "sft"}}


def test_a_merge_takes_any_number_of_models_under_any_names() -> None:
    graph = _graph({**MERGED, "both": {"stage": "merge", "first": "sft", "second": "dpo", "set": {"weights": {"first": 2.0}}}})
    assert dict(graph["both"].inputs) == {"base": "base", "first": "convert_sft", "second": "convert_dpo"}
    assert "convert_both" not in graph
    assert dict(graph["evaluate_both"].inputs)["model"] == "both"
    key = stage_key("merge", graph["both"].settings, dict.fromkeys(graph["both"].inputs, "k"), 0)
    assert key.key


def test_what_starts_from_a_merge_takes_its_folder() -> None:
    graph = _graph(
        {**MERGED, "both": {"stage": "merge", "first": "sft", "second": "dpo"}, "again": {"stage": "sft", "model": "both"}}
    )
    assert graph["again"].inputs["model"] == "both"
    assert dict(graph["convert_again"].inputs) == {"checkpoint": "again", "base": "both"}


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"first": "sft"}, r"pipeline\.both: merge takes at least two models beside 'base', got \['first'\]"),
        ({"first": "sft", "second": "data"}, r"pipeline\.both\.second: 'data' makes a data, and a policy is expected"),
        (
            {"first": "sft", "second": "dpo", "set": {"weights": {"frist": 2.0}}},
            r"pipeline\.both: weights names 'frist', which is no input; did you mean 'first'\?",
        ),
        ({"first": "sft", "second": "dpo", "set": {"weights": {"first": -1.0}}}, r"weights add up to 0 with method 'linear'"),
    ],
)
def test_a_merge_that_cannot_be_is_refused_before_anything_runs(entry: dict[str, Any], reason: str) -> None:
    assert re.search(reason, _refusal({**MERGED, "both": {"stage": "merge", **entry}}))


def test_a_student_has_a_teacher() -> None:
    graph = _graph({**MERGED, "student": {"stage": "distill", "teacher": "dpo"}})
    assert dict(graph["student"].inputs) == {"model": "base", "data": "data", "teacher": "convert_dpo"}
    assert dict(graph["convert_student"].inputs) == {"checkpoint": "student", "base": "base"}
    assert "pipeline.student: say which 'teacher' it takes; base, sft, dpo make one" in _refusal(
        {**MERGED, "student": {"stage": "distill"}}
    )
