"""preset <- given section fields <- dotted overrides, and what is said of wrong ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from data_processing.config import DataConfig
from data_processing.errors import ConfigError
from data_processing.settings import Settings
from evaluation.config import EvaluateConfig
from flows.graph.build import build_graph
from flows.settings.config import PipelineConfig
from flows.settings.entries import Entry
from flows.settings.layers import as_overrides, dotted_paths, given_fields, merge, parse_assignments, set_dotted
from flows.settings.presets import known_presets, read_preset, read_values, resolve
from rlhf_core.settings.credit import DrcaCredit
from rlhf_core.settings.online import OnlineConfig
from rlhf_core.settings.rewards.functions import ProceduresReward
from rlhf_core.settings.supervised import SftConfig
from rlhf_core.settings.training import LoraSettings, OptimizerSettings, Packing

VALUES = st.recursive(
    st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2),
    lambda inner: st.dictionaries(st.sampled_from("abcd"), inner, max_size=3),
    max_leaves=8,
)
MAPPINGS = st.dictionaries(st.sampled_from("abcd"), VALUES, max_size=4)


def _message(**kwargs: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve("quickstart", **kwargs)
    return str(caught.value)


PRESETS = sorted(known_presets())


@pytest.mark.parametrize("preset", PRESETS)
def test_every_shipped_preset_is_valid_and_says_what_it_is_in_its_first_line(preset: str) -> None:
    assert build_graph(resolve(preset))
    assert len(known_presets()[preset].line) > 20


def test_an_override_beats_a_section_and_a_section_beats_the_preset() -> None:
    preset = resolve("quickstart")
    section = resolve("quickstart", {"sft": SftConfig(batch_size=3, max_steps=5)})
    override = resolve("quickstart", {"sft": SftConfig(batch_size=3, max_steps=5)}, {"sft.batch_size": 2})
    assert (section.sft.batch_size, section.sft.max_steps) == (3, 5)
    assert (override.sft.batch_size, override.sft.max_steps) == (2, 5)
    assert section.sft.optimizer == preset.sft.optimizer, "fields that were not given leave the preset alone"


def test_what_is_given_is_used_also_where_it_is_the_default() -> None:
    assert resolve("quickstart").evaluate.micro_batch_tokens != 512
    config = resolve("quickstart", {"evaluate": EvaluateConfig(micro_batch_tokens=512)})
    assert config.evaluate.micro_batch_tokens == 512
    given = SftConfig(optimizer=OptimizerSettings(warmup_fraction=0.1))
    assert resolve("tiny", {"sft": given}).sft.optimizer.warmup_fraction == 0.1
    assert resolve("tiny", {"sft": given}).sft.optimizer.learning_rate == resolve("tiny").sft.optimizer.learning_rate


def test_sections_with_nothing_given_change_nothing() -> None:
    sections = {
        name: field.annotation()
        for name, field in PipelineConfig.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Settings)
    }
    for preset in PRESETS:
        assert resolve(preset, sections) == resolve(preset)


def test_given_fields_are_exactly_those_that_were_set() -> None:
    assert given_fields(SftConfig()) == {}
    assert given_fields(SftConfig(lora=LoraSettings(rank=4), batch_size=8)) == {"lora": {"rank": 4}, "batch_size": 8}
    assert given_fields(DataConfig(procedures=None)) == {"procedures": None}
    rewards = given_fields(OnlineConfig(rewards=[ProceduresReward()]))
    unset = dict.fromkeys(("final_weight", "normalise", "name"))
    assert rewards == {"rewards": [{"kind": "procedures", "weight": 1.0, **unset}]}
    assert given_fields(Entry(stage="online", model="sft")) == {"stage": "online", "model": "sft"}


def test_fields_of_a_kind_are_set_below_its_name() -> None:
    by_name = resolve("tiny", overrides={"online.credit": "drca", "online.credit.beta": 0.5})
    by_kind = resolve("tiny", overrides={"online.credit.kind": "drca", "online.credit.beta": 0.5})
    whole = resolve("tiny", {"online": OnlineConfig(credit=DrcaCredit(beta=0.5))})
    assert by_name == by_kind == whole and by_name.online.credit == DrcaCredit(beta=0.5)
    entry = resolve("tiny", overrides={"pipeline.online.set.credit": "drca", "pipeline.online.set.credit.beta": 0.5})
    assert entry.pipeline["online"].set == {"credit": {"kind": "drca", "beta": 0.5}}
    with pytest.raises(ConfigError, match=r"online.credit.kind: is missing; allowed are drca, outcome, own, process"):
        resolve("tiny", overrides={"online.credit.beta": 0.5})


def test_a_kind_takes_nothing_from_another_one_below() -> None:
    below = {"online": {"credit": {"kind": "drca", "beta": 0.5}, "steps": 3}}
    assert merge(below, {"online": {"credit": {"kind": "outcome"}}}) == {"online": {"credit": {"kind": "outcome"}, "steps": 3}}
    more = merge(below, {"online": {"credit": {"max_units": 2}}})
    assert more["online"]["credit"] == {"kind": "drca", "beta": 0.5, "max_units": 2}


# --- one value is one value


def _leaves_of(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    return {path: leaf for name, item in value.items() for path, leaf in _leaves_of(item, f"{prefix}.{name}".strip(".")).items()}


def _other(value: Any, field: FieldInfo) -> Any:
    """Another value that a field may have, or None where there is no simple one."""
    if isinstance(value, bool):
        candidates: list[Any] = [not value]
    elif isinstance(value, (int, float)):
        candidates = [type(value)(changed) for changed in (value * 2, value / 2, value + 1, value - 1)]
    elif value is None or isinstance(value, (str, Enum)):
        candidates = [*_options(field.annotation), 1, 0.5, "x:Y", "xy"]
    else:
        return None
    for candidate in candidates:
        try:
            TypeAdapter(Annotated[field.annotation, field]).validate_python(candidate)
        except ValidationError:
            continue
        if candidate != value and candidate is not None:
            return candidate
    return None


def _options(annotation: Any) -> list[Any]:
    """The values that a type lists."""
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return [option.value for option in annotation]
    parts = get_args(annotation)
    return list(parts) if get_origin(annotation) is Literal else [option for part in parts for option in _options(part)]


def _others(preset: str) -> Iterator[tuple[str, Any]]:
    """Every path of a preset with a single value, and another one for it."""

    def walk(settings: Settings, prefix: str) -> Iterator[tuple[str, Any]]:
        for name, field in type(settings).model_fields.items():
            value = getattr(settings, name)
            if isinstance(value, Settings):
                yield from walk(value, f"{prefix}{name}.")
            elif (other := _other(value, field)) is not None:
                yield prefix + name, other

    return walk(resolve(preset), "")


@pytest.mark.parametrize("preset", PRESETS)
def test_any_one_setting_changes_exactly_one_value(preset: str) -> None:
    before, tried = _leaves_of(resolve(preset).model_dump(mode="json")), 0
    for path, value in _others(preset):
        try:
            config = resolve(preset, overrides={path: value})
        except ConfigError:
            continue  # a value that does not go with another of its section
        after = _leaves_of(config.model_dump(mode="json"))
        assert {p for p in before.keys() | after.keys() if before.get(p) != after.get(p)} == {path}
        tried += 1
    assert tried > 200, tried


def test_anchors_in_a_file_share_no_values(tmp_path: Path) -> None:
    file = tmp_path / "anchors.yaml"
    file.write_text(
        "pipeline: {}\nsft: {engine: &cpu {micro_batch_tokens: 320}, lora: &lora {rank: 4}}\n"
        "preference: {engine: *cpu, lora: *lora}\nonline: {engine: {<<: *cpu, zero_stage: 2}}\n"
    )
    config = resolve(str(file), overrides={"preference.engine.zero_stage": 3, "sft.lora.rank": 2})
    assert (config.sft.engine.zero_stage, config.preference.engine.zero_stage, config.online.engine.zero_stage) == (1, 3, 2)
    assert (config.sft.lora.rank, config.preference.lora.rank) == (2, 4)
    assert config.online.engine.micro_batch_tokens == 320


def test_a_key_that_stands_twice_is_refused_with_both_lines(tmp_path: Path) -> None:
    file = tmp_path / "twice.yaml"
    file.write_text("online:\n  kl_coef: 0.5\nsft:\n  batch_size: 2\nonline:\n  steps: 3\n")
    with pytest.raises(ConfigError, match=r"twice\.yaml.*'online' stands there twice \(lines 1 and 5\)"):
        read_values(file)


# --- presets


def test_a_preset_of_the_home_or_of_any_path_is_found_and_may_extend_another(tmp_path: Path) -> None:
    home = tmp_path / "presets"
    home.mkdir()
    (home / "mine.yaml").write_text("# Mine.\nextends: tiny\nsft: {batch_size: 3}\npipeline: {online: null}\n")
    (tmp_path / "yours.yaml").write_text("extends: mine\nsft: {max_steps: 7}\npipeline: {more: {stage: sft, model: sft}}\n")
    config = resolve(str(tmp_path / "yours.yaml"), home_presets=home)
    assert (config.sft.batch_size, config.sft.max_steps) == (3, 7)
    assert [name for name, entry in config.pipeline.items() if entry] == ["sft", "reward_model", "preference", "more"]
    assert known_presets(home)["mine"].line == "Mine."
    (tmp_path / "beside.yaml").write_text("extends: ./yours.yaml\n")
    assert resolve(str(tmp_path / "beside.yaml"), home_presets=home) == config


def test_a_preset_that_would_train_nothing_says_what_to_write(tmp_path: Path) -> None:
    file = tmp_path / "old.yaml"
    file.write_text("sft: {batch_size: 3}\nonline: {steps: 2}\n")
    with pytest.raises(
        ConfigError, match=r"'old' has settings for sft, online and no entries, .*pipeline: \{sft: \{stage: sft\}\}"
    ):
        resolve(str(file))
    assert resolve(str(file), overrides={"pipeline.sft": {"stage": "sft"}}).pipeline.keys() == {"sft"}
    file.write_text("sft: {batch_size: 3}\npipeline: {}\n")
    assert resolve(str(file)).pipeline == {}


def test_a_preset_of_the_home_hides_a_shipped_one_of_its_name(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text("pipeline: {}\nsft: {batch_size: 3}\n")
    assert resolve("tiny", home_presets=tmp_path).sft.batch_size == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("extends: nowhere\n", r"preset: got 'nowhere'; allowed are .*quickstart, tiny"),
        ("extends: ./nowhere.yaml\n", r"preset: no file at .*nowhere\.yaml"),
        ("extends: [tiny]\n", r"extends: .*'tiny'.*name of one preset"),
        ("extends: ./wrong.yaml\n", r"in a circle: .*wrong\.yaml -> .*wrong\.yaml"),
    ],
)
def test_a_preset_that_extends_what_it_cannot_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "wrong.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_preset(str(tmp_path / "wrong.yaml"))


# --- entries of the pipeline


def test_an_entry_that_names_its_stage_is_a_new_one_and_one_that_does_not_is_laid_over(tmp_path: Path) -> None:
    file = tmp_path / "over.yaml"
    file.write_text(
        "extends: quickstart\npipeline:\n  online: {stage: online, model: preference}\n  preference: {set: {beta: 0.3}}\n"
    )
    pipeline = resolve(str(file), overrides={"pipeline.preference.set.nll_coef": 0.0}).pipeline
    online, preference = pipeline["online"], pipeline["preference"]
    assert online is not None and online.inputs == {"model": "preference"}
    assert preference is not None and preference.inputs == {"model": "sft"}
    assert preference.set == {"beta": 0.3, "nll_coef": 0.0}


def test_entries_are_set_and_taken_out_by_their_paths() -> None:
    overrides = parse_assignments(
        [
            "pipeline.preference=null",
            "pipeline.online.set.engine.zero_stage=2",
            "pipeline.online.model=base",
            "pipeline.online.each.kl_coef=[0.0, 0.1]",
            "pipeline.dpo={stage: preference, model: sft}",
            "pipeline.dpo.rounds=2",
        ]
    )
    pipeline = resolve("quickstart", overrides=overrides).pipeline
    online, dpo = pipeline["online"], pipeline["dpo"]
    assert pipeline["preference"] is None
    assert online is not None and dpo is not None
    assert (online.set, online.each, online.inputs) == ({"engine": {"zero_stage": 2}}, {"kl_coef": [0.0, 0.1]}, {"model": "base"})
    assert (dpo.stage, dpo.inputs, dpo.rounds) == ("preference", {"model": "sft"}, 2)


def test_a_pipeline_given_as_a_whole_takes_the_place_of_the_presets() -> None:
    pipeline = {"only": Entry(stage="sft", model="base")}
    assert resolve("quickstart", pipeline=pipeline).pipeline == pipeline


# --- merging


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
    config = resolve("tiny", overrides={"online.kl_coef": 0.5, "data.procedures.difficulty": 3})
    file = tmp_path / "config.yaml"
    file.write_text(config.model_dump_json(), encoding="utf-8")  # JSON is YAML
    assert resolve("quickstart", overrides=as_overrides(read_values(file))) == config


def test_every_field_can_be_set_by_its_path_alone() -> None:
    for path in dotted_paths():
        values: dict[str, Any] = {}
        set_dotted(values, path, "value")
        for name in path.split("."):
            values = values[name]
        assert values == "value", path


def test_a_misspelt_path_is_refused_with_the_right_one_suggested() -> None:
    for path in dotted_paths():
        with pytest.raises(ConfigError) as caught:
            set_dotted({}, path + "x", 1)
        assert path.rsplit(".", maxsplit=1)[-1] in str(caught.value), path


def test_values_are_read_as_yaml() -> None:
    texts = ["a.b=0.02", "c=[1, 2]", "d=null", "e=true", "f=text", "g=a=b"]
    assert parse_assignments(texts) == {"a.b": 0.02, "c": [1, 2], "d": None, "e": True, "f": "text", "g": "a=b"}
    with pytest.raises(ConfigError, match=r"section\.field=value"):
        parse_assignments(["online.kl_coef"])


@pytest.mark.parametrize(
    ("given", "packing"), [("auto", "auto"), ("on", "on"), ("off", "off"), ("true", "on"), ("false", "off"), ("'off'", "off")]
)
def test_packing_is_a_word_and_a_truth_value_of_yaml_still_means_one(given: str, packing: str) -> None:
    config = resolve("quickstart", overrides=parse_assignments([f"sft.engine.packing={given}"]))
    assert config.sft.engine.packing is Packing(packing)
    assert config.sft.result_fields()["engine"]["packing"] == packing
    assert resolve("quickstart").sft.engine.packing is Packing.auto


def test_the_form_offers_the_words_for_packing() -> None:
    schema = PipelineConfig.model_json_schema()["$defs"]
    assert schema["EngineSettings"]["properties"]["packing"]["$ref"] == "#/$defs/Packing"
    assert schema["Packing"]["enum"] == ["auto", "on", "off"]


def test_a_learning_rate_in_short_scientific_notation_is_a_number() -> None:
    assert (
        resolve("quickstart", overrides=parse_assignments(["sft.optimizer.learning_rate=1e-4"])).sft.optimizer.learning_rate
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
        ({"sft.engine.zero_stage": 0, "sft.engine.dtype": "bf16"}, ["sft.engine", "dtype 'bf16'", "zero_stage 0"]),
        ({"run.skip": ["sft"]}, ["run.skip is no more", "null", "--set pipeline.preference=null"]),
        ({"pipeline.online.stage": None}, ["pipeline.online.stage"]),
        ({"pipeline.online.rounds.x": 1}, ["pipeline.online.rounds", "set it whole"]),
    ],
)
def test_a_wrong_value_is_answered_with_field_value_and_what_is_allowed(overrides: dict[str, Any], said: list[str]) -> None:
    message = _message(overrides=overrides)
    assert [text for text in said if text not in message] == []


def test_an_unknown_preset_is_answered_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match=r"'quikstart'; did you mean 'quickstart'\? allowed are .*quickstart, tiny"):
        resolve("quikstart")


def test_a_configuration_file_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no file at .*missing\.yaml"):
        read_values(tmp_path / "missing.yaml")
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(ConfigError, match=r"holds a list; expected sections: run, pipeline, model"):
        read_values(tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="not readable YAML"):
        read_values(tmp_path / "broken.yaml")


def test_an_old_preset_is_told_what_to_write_now(tmp_path: Path) -> None:
    (tmp_path / "old.yaml").write_text("run: {skip: [preference]}\n")
    with pytest.raises(ConfigError, match=r"run\.skip is no more: take an entry out with null"):
        resolve(str(tmp_path / "old.yaml"))


def _both_are_sections(below: Any, above: Any) -> bool:
    return isinstance(below, dict) and isinstance(above, dict)


def _leaves(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value if not isinstance(value, dict) else len(value) for name, value in values.items()}


def test_a_date_and_the_arguments_of_a_template_come_from_assignments_and_files_as_json_has_them(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("model: {template_date: 2026-03-01, chat_template_kwargs: {enable_thinking: false}}")
    given = ["model.template_date=2026-03-01", "model.chat_template_kwargs={enable_thinking: false}"]
    for overrides in (parse_assignments(given), as_overrides(read_values(file))):
        assert json.loads(json.dumps(overrides)) == overrides
        model = resolve("quickstart", overrides=overrides).model
        assert (str(model.template_date), model.chat_template_kwargs) == ("2026-03-01", {"enable_thinking": False})


@pytest.mark.parametrize("preset", PRESETS)
def test_any_one_setting_of_an_entry_changes_exactly_that(preset: str) -> None:
    """Also where entries share a stage, and where nothing was set before."""
    config = resolve(preset)
    before, tried = _leaves_of(config.model_dump(mode="json")), 0
    entries = {entry: settings for entry, settings in config.pipeline.items() if settings is not None}
    for entry, settings in entries.items():
        for field, value in (
            ("seed", 99),
            ("evaluate", not settings.evaluate),
            ("set.max_length_tokens", 777),
            ("set.batch_size", 3),
        ):
            path = f"pipeline.{entry}.{field}"
            try:
                changed = resolve(preset, overrides={path: value})
            except ConfigError:
                continue  # online has no batch_size
            after = _leaves_of(changed.model_dump(mode="json"))
            different = {p for p in before.keys() | after.keys() if before.get(p) != after.get(p)}
            assert different - {f"pipeline.{entry}.set"} == {path}
            tried += 1
    assert tried >= 3 * len(entries) > 0
