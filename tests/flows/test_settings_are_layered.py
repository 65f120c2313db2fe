"""preset <- changed section fields <- dotted overrides, and what is said of wrong ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import deployments.presets
from data_processing.config import DataConfig
from data_processing.errors import ConfigError
from flows.config import PipelineConfig, RunConfig
from flows.presets import (
    Preset,
    as_overrides,
    changed_fields,
    dotted_paths,
    find_preset,
    merge,
    parse_assignments,
    read_values,
    resolve,
    set_dotted,
)
from rlhf_core.config import LoraSettings, OnlineConfig, Packing, RewardSource, SftConfig

VALUES = st.recursive(
    st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2),
    lambda inner: st.dictionaries(st.sampled_from("abcd"), inner, max_size=3),
    max_leaves=8,
)
MAPPINGS = st.dictionaries(st.sampled_from("abcd"), VALUES, max_size=4)


def _message(**kwargs: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve(Preset.quickstart, **kwargs)
    return str(caught.value)


def test_every_shipped_preset_has_a_name_and_every_name_a_valid_preset() -> None:
    folder = Path(next(iter(deployments.presets.__path__)))
    assert {path.stem for path in folder.glob("*.yaml")} == {preset.value for preset in Preset}
    for preset in Preset:
        assert isinstance(resolve(preset), PipelineConfig)


def test_an_override_beats_a_section_and_a_section_beats_the_preset() -> None:
    preset = resolve(Preset.quickstart)
    section = resolve(Preset.quickstart, {"sft": SftConfig(batch_size=3, max_steps=5)})
    override = resolve(Preset.quickstart, {"sft": SftConfig(batch_size=3, max_steps=5)}, {"sft.batch_size": 2})
    assert (section.sft.batch_size, section.sft.max_steps) == (3, 5)
    assert (override.sft.batch_size, override.sft.max_steps) == (2, 5)
    assert section.sft.optimizer == preset.sft.optimizer, "fields at their default leave the preset alone"


def test_the_defaults_of_every_section_change_nothing() -> None:
    sections = {name: field.get_default(call_default_factory=True) for name, field in PipelineConfig.model_fields.items()}
    for preset in Preset:
        assert resolve(preset, sections) == resolve(preset)


def test_changed_fields_are_exactly_those_that_differ_from_their_default() -> None:
    assert changed_fields(SftConfig()) == {}
    assert changed_fields(SftConfig(lora=LoraSettings(rank=4), batch_size=2)) == {"lora": {"rank": 4}, "batch_size": 2}
    assert changed_fields(DataConfig(procedures=None)) == {"procedures": None}
    rewards = changed_fields(OnlineConfig(rewards=[RewardSource(kind="procedures")]))
    assert rewards == {"rewards": [{"kind": "procedures", "weight": 1.0, "function": None}]}


@given(MAPPINGS, MAPPINGS)
def test_merging_keeps_all_that_is_above_and_what_it_does_not_mention(below: dict[str, Any], above: dict[str, Any]) -> None:
    merged = merge(below, above)
    assert merged.keys() == below.keys() | above.keys()
    assert merge(merged, above) == merged
    for name, value in above.items():
        assert merged[name] == (merge(below[name], value) if _both_are_sections(below.get(name), value) else value)
    for name in below.keys() - above.keys():
        assert merged[name] == below[name]


@given(MAPPINGS, MAPPINGS, MAPPINGS)
def test_merging_layers_one_by_one_or_in_pairs_is_the_same_where_sections_stay_sections(
    a: dict[str, Any], b: dict[str, Any], c: dict[str, Any]
) -> None:
    a, b, c = ({"x": {"y": layer}} for layer in (_leaves(a), _leaves(b), _leaves(c)))
    assert merge(merge(a, b), c) == merge(a, merge(b, c))


def test_a_resolved_configuration_read_back_from_a_file_is_the_same(tmp_path: Path) -> None:
    config = resolve(Preset.tiny, overrides={"online.kl_coef": 0.5, "data.procedures.difficulty": 3})
    file = tmp_path / "config.yaml"
    file.write_text(config.model_dump_json(), encoding="utf-8")  # JSON is YAML
    assert resolve(Preset.quickstart, overrides=as_overrides(read_values(file))) == config


@pytest.mark.parametrize("path", sorted(dotted_paths()))
def test_every_field_can_be_set_by_its_path_alone(path: str) -> None:
    values: dict[str, Any] = {}
    set_dotted(values, path, "value")
    for name in path.split("."):
        values = values[name]
    assert values == "value"


@pytest.mark.parametrize("path", sorted(dotted_paths()))
def test_a_misspelt_path_is_refused_with_the_right_one_suggested(path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        set_dotted({}, path + "x", 1)
    assert path.rsplit(".", maxsplit=1)[-1] in str(caught.value)


def test_values_are_read_as_yaml() -> None:
    texts = ["a.b=0.02", "c=[1, 2]", "d=null", "e=true", "f=text", "g=a=b"]
    assert parse_assignments(texts) == {"a.b": 0.02, "c": [1, 2], "d": None, "e": True, "f": "text", "g": "a=b"}
    with pytest.raises(ConfigError, match=r"section\.field=value"):
        parse_assignments(["online.kl_coef"])


@pytest.mark.parametrize(
    ("given", "packing"), [("auto", "auto"), ("on", "on"), ("off", "off"), ("true", "on"), ("false", "off"), ("'off'", "off")]
)
def test_packing_is_a_word_and_a_truth_value_of_yaml_still_means_one(given: str, packing: str) -> None:
    config = resolve(Preset.quickstart, overrides=parse_assignments([f"sft.engine.packing={given}"]))
    assert config.sft.engine.packing is Packing(packing)
    assert config.sft.result_fields()["engine"]["packing"] == packing
    assert resolve(Preset.quickstart).sft.engine.packing is Packing.auto


def test_the_form_offers_the_words_for_packing() -> None:
    schema = PipelineConfig.model_json_schema()["$defs"]
    assert schema["EngineSettings"]["properties"]["packing"]["$ref"] == "#/$defs/Packing"
    assert schema["Packing"]["enum"] == ["auto", "on", "off"]


def test_a_learning_rate_in_short_scientific_notation_is_a_number() -> None:
    assert (
        resolve(Preset.quickstart, overrides=parse_assignments(["sft.optimizer.learning_rate=1e-4"])).sft.optimizer.learning_rate
        == 1e-4
    )


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"online.kl_coef": -1}, ["online.kl_coef", "-1", "greater than or equal to 0"]),
        ({"online.kl_coeff": 1}, ["online.kl_coeff", "'kl_coef'", "clip_low"]),
        ({"kl_coef": 1}, ["kl_coef", "'online.kl_coef'"]),
        ({"preference.method": "dpp"}, ["preference.method", "'dpp'", "'dpo'", "'ipo'"]),
        ({"sft.batch_size": "x", "online.steps": 0}, ["sft.batch_size", "'x'", "online.steps", "0"]),
        ({"online.rewards": [{"kind": "procedure"}]}, ["online.rewards[0].kind", "'procedure'", "'procedures'"]),
        ({"online.rewards": [{"kind": "procedures", "wieght": 1}]}, ["online.rewards[0].wieght", "'weight'"]),
        ({"online.rewards.0.weight": 1}, ["online.rewards", "set it whole"]),
        ({"data": {"sft": [{"path": "x", "knd": "file"}]}}, ["data.sft[0].knd", "'kind'"]),
        ({"sft.engine.zero_stage": 0}, ["sft.engine", "dtype 'bf16'", "zero_stage 0"]),
        ({"run.skip": ["rewards"]}, ["run.skip[0]", "'rewards'", "'reward_model'"]),
        ({"run.skip": ["reward_model"]}, ["online.rewards", "evaluate.metrics", "run.skip"]),
        ({"run.skip": ["sft"]}, ["compare.baseline", "'sft'", "base, preference, online"]),
        ({"compare.candidates": ["sft"]}, ["compare.candidates", "'sft'", "baseline"]),
        ({"compare.candidates": ["onlin"]}, ["compare.candidates", "onlin", "online"]),
    ],
)
def test_a_wrong_value_is_answered_with_field_value_and_what_is_allowed(overrides: dict[str, Any], said: list[str]) -> None:
    message = _message(overrides=overrides)
    assert [text for text in said if text not in message] == []


def test_an_unknown_preset_is_answered_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match=r"'quikstart'; did you mean 'quickstart'\? allowed are quickstart, tiny"):
        find_preset("quikstart")


def test_a_configuration_file_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no file at .*missing\.yaml"):
        read_values(tmp_path / "missing.yaml")
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(ConfigError, match=r"holds a list; expected sections: run, model"):
        read_values(tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="not readable YAML"):
        read_values(tmp_path / "broken.yaml")


def test_a_stage_is_skipped_once() -> None:
    with pytest.raises(ValueError, match="twice"):
        RunConfig(skip=["online", "online"])  # type: ignore[list-item]


def _both_are_sections(below: Any, above: Any) -> bool:
    return isinstance(below, dict) and isinstance(above, dict)


def _leaves(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value if not isinstance(value, dict) else len(value) for name, value in values.items()}
